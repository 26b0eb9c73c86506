// The audit trail as far as the page shows it: what is asked of it, and its answer in pages.

import { $, count, h, plural, say } from "/dashboard/dom.js";
import { ask } from "/dashboard/link.js";
import * as views from "/dashboard/views.js";

const ROWS = 50;
/** Kinds of records that are also kinds of what happens. */
export const HAPPENING = ["throttle", "retry", "breaker", "override", "config", "key", "degradation", "gap"];
const KINDS = [...HAPPENING, "retention", "alert", "anomaly", "call"];

let records = [];
let page = 0;
let explain = () => {};

/** `why` is called with a call's id when somebody asks what came of it. */
export function explainedBy(why) {
  explain = why;
}

$("audit-kind").append(h("option", { value: "" }, "all"), ...KINDS.map((kind) => h("option", { value: kind }, kind)));

function draw() {
  const pages = Math.max(1, Math.ceil(records.length / ROWS));
  const from = page * ROWS;
  views.auditRows(records.slice(from, from + ROWS), explain);
  $("audit-table").hidden = records.length === 0;
  $("audit-empty").hidden = records.length > 0;
  $("audit-pager").hidden = pages < 2;
  $("audit-before").disabled = page === 0;
  $("audit-after").disabled = page >= pages - 1;
  say($("audit-page"), `${count(from + 1)} to ${count(Math.min(from + ROWS, records.length))} of ${count(records.length)}`);
}
async function search() {
  const query = new URLSearchParams();
  for (const name of ["since", "kind", "user", "call"]) {
    const value = $(`audit-${name}`).value.trim();
    if (value) query.set(name, value);
  }
  try {
    const found = await ask("GET", `/admin/v1/audit?${query}`);
    records = found.records.reverse();
    page = 0;
    say($("audit-empty"), "No record fits. Try a longer time, such as 7d, or fewer filters.");
    say($("audit-count"), records.length ? `${plural(records.length, "record", "records")}${found.more ? ", the newest of more" : ""}` : "");
    $("audit-empty").classList.remove("error");
  } catch (error) {
    records = [];
    say($("audit-empty"), `${error.message}.`);
    say($("audit-count"), "");
    $("audit-empty").classList.add("error");
  }
  draw();
}
$("audit-form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
$("audit-before").addEventListener("click", () => {
  page -= 1;
  draw();
});
$("audit-after").addEventListener("click", () => {
  page += 1;
  draw();
});
