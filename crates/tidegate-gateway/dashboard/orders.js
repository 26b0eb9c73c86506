// What operators do: each thing is said again, with room for a reason, before it is done.

import { $, h, say, toast, words } from "/dashboard/dom.js";
import { ask } from "/dashboard/link.js";

let order = null;

/** Asks for a reason, and for what else `fields` name, before anything is done. `text` may depend on what is in these. */
function confirmed({ title, text, go, isDanger, fields = [], path, body, done }) {
  order = { text, path, body, done };
  say($("act-title"), title);
  say($("act-go"), go);
  $("act-go").classList.toggle("danger", Boolean(isDanger));
  $("act-fields").replaceChildren(...fields.map(({ name, label, value, hint }) => h("label", { class: "stack" }, `${label} `, hint ? h("span", { class: "faint" }, hint) : null, h("input", { name, value, autocomplete: "off", spellcheck: "false" }))));
  $("act-reason").value = "";
  $("act-error").hidden = true;
  sayOrder();
  $("act").showModal();
  ($("act-fields").querySelector("input") ?? $("act-reason")).focus();
}
const asked = () => Object.fromEntries([...$("act-fields").querySelectorAll("input")].map((input) => [input.name, input.value.trim()]));
const sayOrder = () => say($("act-text"), typeof order.text === "function" ? order.text(asked()) : order.text);
$("act-fields").addEventListener("input", sayOrder);
$("act-cancel").addEventListener("click", () => $("act").close());
$("act-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const values = asked();
  const reason = $("act-reason").value.trim();
  $("act-go").disabled = true;
  try {
    const body = { ...order.body?.(values), ...(reason ? { reason } : {}) };
    const told = await ask("POST", order.path, body);
    $("act").close();
    toast(order.done);
    for (const warning of told.warnings ?? []) toast(warning, true);
  } catch (error) {
    const hint = error.status === 403 ? " Sign out and use an operator's token." : "";
    say($("act-error"), `${error.message}.${hint}`);
    $("act-error").hidden = false;
  } finally {
    $("act-go").disabled = false;
  }
});

const BREAKER_ORDERS = {
  "force-open": ["Hold open", "Calls to it are refused until you reset it.", true],
  "force-half-open": ["Probe", "The next few calls try it; as many successes close it, one fault opens it again."],
  "force-closed": ["Hold closed", "Calls go through whatever comes back, until you reset it.", true],
  reset: ["Reset", "It is closed and goes on by what it sees."],
};

/** `user=ada, model=gpt-4*`; a name that would not end where it ends is quoted. */
const shownMatch = (match) => Object.entries(match).map(([what, name]) => `${what}=${/^[\s"]|,|\s$/.test(name) ? JSON.stringify(name) : name}`).join(", ");

/** The same as the gateway wants it. */
function readMatch(text) {
  const found = {};
  const rest = text.replace(/\s*([a-z_]+)\s*=\s*(?:("(?:[^"\\]|\\.)*")|([^,"][^,]*)?)\s*(?:,|$)/gy, (_, what, quoted, plain) => {
    found[what] = quoted ? JSON.parse(quoted) : (plain ?? "").trim();
    return "";
  });
  if (rest.trim()) throw new Error(`“${rest.trim()}” cannot be read: write user=ada, model=gpt-4*, and a name with a comma in it as "a, b"`);
  return found;
}

function readNumber(text) {
  const number = Number(text);
  if (text === "" || !Number.isFinite(number)) throw new Error(`“${text}” is no number: write 1.5, with a point`);
  return number;
}

/** What the rows of tables offer. */
export const act = {
  breaker(name, which) {
    const [go, text, isDanger] = BREAKER_ORDERS[which];
    confirmed({ title: `${go}: ${name}`, text, go, isDanger, path: `/admin/v1/breakers/${name.split("/").map(encodeURIComponent).join("/")}/${which}`, done: `${name}: ${words(go.toLowerCase())}.` });
  },
  boost(level) {
    confirmed({
      title: `Boost limit ${level.limit}`,
      text: ({ match }) => {
        const any = match.includes("*") ? ", where * stands for anything" : "";
        return `Raises it ${match ? `only where ${match}${any}` : "for everybody"}. It ends by itself and survives a restart. A factor of 1 ends a boost.`;
      },
      go: "Boost",
      fields: [
        { name: "factor", label: "Factor", value: "1.5" },
        { name: "for", label: "For", value: "10m" },
        { name: "match", label: "Only where", value: shownMatch(level.match), hint: "(such as user=ada; empty: everybody)" },
      ],
      path: `/admin/v1/limits/${encodeURIComponent(level.limit)}/boost`,
      body: ({ factor, for: lasting, match }) => ({
        factor: readNumber(factor),
        ...(lasting ? { for: lasting } : {}),
        ...(match ? { match: readMatch(match) } : {}),
      }),
      done: `Limit ${level.limit} is boosted.`,
    });
  },
  resetLimit(level) {
    confirmed({ title: `Reset limit ${level.limit}`, text: "Sets all its levels back to full: what was used is forgotten, debt too.", go: "Reset", isDanger: true, path: `/admin/v1/limits/${encodeURIComponent(level.limit)}/reset`, done: `Limit ${level.limit} is full again.` });
  },
};
$("limits-reset").addEventListener("click", () => confirmed({ title: "Reset all limits", text: "Sets every level back to full: what was used is forgotten, debt too.", go: "Reset all", isDanger: true, path: "/admin/v1/limits/reset", done: "All limits are full again." }));

/** Pauses calls, or lets them go on. */
export function pause(isPaused) {
  confirmed(
    isPaused
      ? { title: "Resume calls", text: "Calls are taken again at once.", go: "Resume", path: "/admin/v1/resume", done: "Calls are taken again." }
      : { title: "Pause calls", text: "New calls are refused with 503 and your reason; those under way go on.", go: "Pause", isDanger: true, path: "/admin/v1/pause", done: "Calls are paused." },
  );
}
