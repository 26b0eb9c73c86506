// In which colours the page is shown: as the system has it, or as somebody chose.

import { $, say } from "/dashboard/dom.js";

const THEMES = ["auto", "light", "dark"];
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

let repaint = () => {};

function paint() {
  const chosen = localStorage.getItem("tidegate-theme") ?? "auto";
  document.documentElement.dataset.theme = chosen === "auto" ? (prefersDark.matches ? "dark" : "light") : chosen;
  const name = chosen[0].toUpperCase() + chosen.slice(1);
  say($("theme"), name);
  $("theme").setAttribute("aria-label", `Theme: ${name}`);
  repaint();
}
prefersDark.addEventListener("change", paint);
$("theme").addEventListener("click", () => {
  const chosen = localStorage.getItem("tidegate-theme") ?? "auto";
  localStorage.setItem("tidegate-theme", THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]);
  paint();
});

/** Charts are drawn, not styled: `again` draws them, now and after each change. */
export function painted(again) {
  repaint = again;
  paint();
}
