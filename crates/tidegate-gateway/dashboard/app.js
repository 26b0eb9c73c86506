// What the page does: keeps the line open, remembers what came, and redraws when there is something new to see.

import { $, count, h, plural, say, toast, used, words } from "/dashboard/dom.js";
import { Charts, sums } from "/dashboard/charts.js";
import { Line, ask, role, series, token } from "/dashboard/link.js";
import { Refused } from "/dashboard/refused.js";
import { verdict } from "/dashboard/verdict.js";
import * as views from "/dashboard/views.js";

const ROWS = 10;
const EVENTS_KEPT = 500;
const EVENTS_SHOWN = 80;
const AUDIT_ROWS = 50;
const KINDS = ["throttle", "retry", "breaker", "override", "config", "key", "degradation", "gap", "retention", "alert", "anomaly", "call"];

const state = { link: "off", why: "", status: null, minute: null, all: null, page: 0, events: [], heldEvents: null, history: new Map(), said: new Map(), isPointed: false, lost: 0, audit: [], auditPage: 0, sequence: 0 };
const refused = new Refused();
const charts = new Charts({ attempts: $("chart-attempts"), queue: $("chart-queue"), latency: $("chart-latency") });

// ---- the theme

const THEMES = ["auto", "light", "dark"];
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function paint() {
  const chosen = localStorage.getItem("tidegate-theme") ?? "auto";
  document.documentElement.dataset.theme = chosen === "auto" ? (prefersDark.matches ? "dark" : "light") : chosen;
  const name = chosen[0].toUpperCase() + chosen.slice(1);
  say($("theme"), name);
  $("theme").setAttribute("aria-label", `Theme: ${name}`);
  charts.repaint();
}
prefersDark.addEventListener("change", paint);
$("theme").addEventListener("click", () => {
  const chosen = localStorage.getItem("tidegate-theme") ?? "auto";
  localStorage.setItem("tidegate-theme", THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length]);
  paint();
});
paint();

// ---- what is drawn when

let isDue = false;
function redraw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    drawEvents();
    if (!state.status) return;
    verdict(state.status, state.minute, refused.causes());
    views.tiles(state.status, state.minute);
    views.learned(state.status);
    views.breakers(state.status, state.history, state.said, act);
    views.queue(state.status);
    drawLimits();
    drawLink();
  });
}

const isPaused = () => state.status?.paused !== null && state.status?.paused !== undefined;

function drawLink(now = state.link, why = state.why) {
  Object.assign(state, { link: now, why });
  const { status } = state;
  const shown = now !== "live" ? now : isPaused() ? "paused" : status?.state === "draining" ? "draining" : "live";
  const said = { live: "Live", paused: "Paused", draining: "Draining", lost: "Connection lost", off: "Not connected" }[shown];
  $("link").dataset.state = shown;
  say($("link-text"), said);
  // What was last known stays on the page: why it may be old must be where one looks first.
  say($("lost"), shown === "lost" ? `Not live: ${why}${/[.!?]$/.test(why) ? "" : "."}` : "");
  $("lost").hidden = shown !== "lost";
  say($("pause"), isPaused() ? "Resume calls" : "Pause calls");
  say($("version"), status?.version ?? "");
}

function drawLimits() {
  const search = $("limits-search").value.trim().toLowerCase();
  const { status } = state;
  const all = (search || state.page > 0) && state.all ? state.all : status.limits;
  const found = all.filter((level) => !search || `${level.limit}/${level.key}`.toLowerCase().includes(search));
  const inAll = search ? found.length : status.levels;
  const pages = Math.max(1, Math.ceil(inAll / ROWS));
  state.page = Math.min(state.page, pages - 1);
  const from = state.page * ROWS;
  const refusing = refused.levels();
  views.limits(found.slice(from, from + ROWS), refusing.by, act);
  $("limits-pager").hidden = pages < 2;
  say($("limits-page"), `${count(from + 1)} to ${count(Math.min(from + ROWS, inAll))} of ${count(inAll)}`);
  $("limits-before").disabled = state.page === 0;
  $("limits-after").disabled = state.page >= pages - 1;
  $("limits-empty").hidden = found.length > 0;
  say(
    $("limits-empty"),
    search ? `No limit or key has “${search}” in its name.` : "No limit of yours has been used yet. [limit.NAME] in the configuration adds some; those of upstreams are learned, below.",
  );
  const holding = count(status.levels_binding) + (status.levels_binding === 1 ? " holds calls up" : " hold calls up");
  const stopping = refusing.by.size ? `${count(refusing.by.size)}${refusing.hasMore ? " and more" : ""} refused calls lately` : status.levels_binding ? "" : "none holds calls up";
  const parts = [plural(status.levels, "level", "levels"), status.levels_binding ? holding : "", stopping, search ? `${count(found.length)} found` : ""];
  say($("limits-count"), status.levels ? parts.filter(Boolean).join(", ") : "");
}

const fullness = (level) => Math.max(0, ...level.meters.map(used));
const binds = (level) => level.meters.some((one) => one.binds);

/** Beyond the fullest levels, which come by themselves: all of them, when somebody searches or turns the page. */
async function fetchAll() {
  if (!$("limits-search").value.trim() && state.page === 0) return;
  try {
    const { limits } = await ask("GET", "/admin/v1/status");
    state.all = limits.sort((a, b) => binds(b) - binds(a) || fullness(b) - fullness(a));
    redraw();
  } catch (error) {
    toast(`The levels cannot be read: ${error.message}.`, true);
  }
}
let soon = 0;
const fetchSoon = () => {
  clearTimeout(soon);
  soon = setTimeout(fetchAll, 150);
  redraw();
};
setInterval(() => token.get() && fetchAll(), 5000);
$("limits-search").addEventListener("input", () => {
  state.page = 0;
  fetchSoon();
});
$("limits-before").addEventListener("click", () => {
  state.page -= 1;
  fetchSoon();
});
$("limits-after").addEventListener("click", () => {
  state.page += 1;
  fetchSoon();
});

// ---- what happens

$("events-kind").append(h("option", { value: "" }, "All kinds"), ...[...KINDS.slice(0, 8), "alert", "anomaly", "learned"].map((kind) => h("option", { value: kind }, kind)));

function drawEvents() {
  // What somebody is about to click on must not move away.
  if (state.isPointed) return;
  const search = $("events-search").value.trim().toLowerCase();
  const kind = $("events-kind").value;
  const from = state.heldEvents ?? state.events;
  const fits = ({ data, text }) => (!kind || data.kind === kind) && (!search || text.includes(search));
  const rows = [];
  for (let at = from.length - 1; at >= 0 && rows.length < EVENTS_SHOWN; at--) if (fits(from[at])) rows.push(from[at]);
  views.events(rows, explain);
  $("events-empty").hidden = rows.length > 0;
  if (from.length) say($("events-empty"), "Nothing of what happened fits the filter.");
  const held = state.heldEvents ? `held still, ${count(state.events.length - state.heldEvents.length)} newer` : "";
  say($("events-count"), [held, state.lost ? `${count(state.lost)} came too fast to be shown` : ""].filter(Boolean).join(", "));
}
for (const id of ["events-search", "events-kind"]) $(id).addEventListener("input", redraw);
$("events-hold").addEventListener("click", () => {
  state.heldEvents = state.heldEvents ? null : [...state.events];
  $("events-hold").setAttribute("aria-pressed", String(state.heldEvents !== null));
  redraw();
});

$("events-rows").addEventListener("pointerenter", () => (state.isPointed = true));
$("events-rows").addEventListener("pointerleave", () => {
  state.isPointed = false;
  redraw();
});

/** Of several accounts' breakers that change together one change is told, with how many they were. */
const TOGETHER_MS = 1000;
function remember({ target, at, before, after }) {
  const changes = state.history.get(target) ?? [];
  const same = changes.find((change) => change.from === before && change.to === after && Math.abs(Date.parse(at) - Date.parse(change.at)) < TOGETHER_MS);
  if (same) same.accounts += 1;
  else changes.unshift({ at, from: before, to: after, accounts: 1 });
  state.history.set(target, changes.slice(0, 8));
}

function take(event, data) {
  if (event === "status") {
    state.status = data;
    refused.clock(data.at);
    charts.waiting(Date.parse(data.at) / 1000, data.queue.waiting);
  } else if (event === "lost") {
    state.lost += data.events;
  } else {
    const text = [data.call, data.tenant, data.user, data.limit, data.target, data.who, views.told(event, data)].filter(Boolean).join(" ").toLowerCase();
    state.events.push({ key: state.sequence++, event, data, text });
    if (state.events.length > EVENTS_KEPT) state.events.splice(0, state.events.length - EVENTS_KEPT);
    if (event === "state_changed") remember(data);
    if (event === "override_applied" && data.target) state.said.set(data.target, `forced by ${[data.who, data.why].filter(Boolean).join(": ")}`);
    if (event === "refused") refused.take(data);
    if (event === "fell_back") refused.wentOn(data);
  }
  redraw();
}

// ---- why

async function explain(call) {
  $("why-call").value = call;
  $("why").scrollIntoView({ block: "nearest" });
  try {
    $("why-answer").replaceChildren(views.explanation(await ask("GET", `/admin/v1/explain/${encodeURIComponent(call)}`)));
  } catch (error) {
    $("why-answer").replaceChildren(h("p", { class: "error" }, `${error.message}.`));
  }
}
$("why-form").addEventListener("submit", (event) => {
  event.preventDefault();
  explain($("why-call").value.trim());
});

// ---- the audit trail

$("audit-kind").append(h("option", { value: "" }, "all"), ...KINDS.map((kind) => h("option", { value: kind }, kind)));

function drawAudit() {
  const pages = Math.max(1, Math.ceil(state.audit.length / AUDIT_ROWS));
  const from = state.auditPage * AUDIT_ROWS;
  views.auditRows(state.audit.slice(from, from + AUDIT_ROWS), explain);
  $("audit-table").hidden = state.audit.length === 0;
  $("audit-empty").hidden = state.audit.length > 0;
  $("audit-pager").hidden = pages < 2;
  $("audit-before").disabled = state.auditPage === 0;
  $("audit-after").disabled = state.auditPage >= pages - 1;
  say($("audit-page"), `${count(from + 1)} to ${count(Math.min(from + AUDIT_ROWS, state.audit.length))} of ${count(state.audit.length)}`);
}
async function searchAudit() {
  const query = new URLSearchParams();
  for (const name of ["since", "kind", "user", "call"]) {
    const value = $(`audit-${name}`).value.trim();
    if (value) query.set(name, value);
  }
  try {
    const { records, more } = await ask("GET", `/admin/v1/audit?${query}`);
    state.audit = records.reverse();
    state.auditPage = 0;
    say($("audit-empty"), "No record fits. Try a longer time, such as 7d, or fewer filters.");
    say($("audit-count"), records.length ? `${plural(records.length, "record", "records")}${more ? ", the newest of more" : ""}` : "");
    $("audit-empty").classList.remove("error");
  } catch (error) {
    state.audit = [];
    say($("audit-empty"), `${error.message}.`);
    say($("audit-count"), "");
    $("audit-empty").classList.add("error");
  }
  drawAudit();
}
$("audit-form").addEventListener("submit", (event) => {
  event.preventDefault();
  searchAudit();
});
$("audit-before").addEventListener("click", () => {
  state.auditPage -= 1;
  drawAudit();
});
$("audit-after").addEventListener("click", () => {
  state.auditPage += 1;
  drawAudit();
});

// ---- what operators do

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

const act = {
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
$("pause").addEventListener("click", () => {
  confirmed(
    isPaused()
      ? { title: "Resume calls", text: "Calls are taken again at once.", go: "Resume", path: "/admin/v1/resume", done: "Calls are taken again." }
      : { title: "Pause calls", text: "New calls are refused with 503 and your reason; those under way go on.", go: "Pause", isDanger: true, path: "/admin/v1/pause", done: "Calls are paused." },
  );
});

// ---- the line, and who may read it

const line = new Line(take, drawLink, (error) => {
  token.forget();
  enter(error.status === 401 ? "This token is not known here. Copy the whole of it, without the line break." : `${error.message}.`);
});

/** A viewer is shown no button that would be refused him. */
function allow(name) {
  const isViewer = name === "viewer";
  for (const id of ["pause", "limits-reset"]) $(id).hidden = isViewer;
  $("role").hidden = !isViewer;
  document.documentElement.dataset.role = name;
}
role.told = allow;

function enter(why = "") {
  drawLink("off", "");
  $("enter-error").hidden = !why;
  say($("enter-error"), why);
  if (!$("enter").open) $("enter").showModal();
  $("enter-token").focus();
}
$("enter").addEventListener("cancel", (event) => event.preventDefault());
$("enter-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.keep($("enter-token").value.trim());
  $("enter-token").value = "";
  $("enter").close();
  begin();
});
$("leave").addEventListener("click", () => {
  token.forget();
  line.close();
  location.reload();
});

async function countAll() {
  if (!token.get() || document.hidden) return;
  try {
    const minute = charts.sample(sums(await series(), Date.now() / 1000));
    if (minute) state.minute = minute;
  } catch {
    // The line says that the gateway cannot be reached.
  }
}
async function look() {
  if (!token.get() || document.hidden) return;
  try {
    views.alerts((await ask("GET", "/admin/v1/alerts")).alerts ?? []);
  } catch {
    // The line says what is wrong.
  }
}

function begin() {
  line.open();
  countAll();
  look();
}
setInterval(countAll, 2000);
setInterval(look, 5000);
if (token.get()) begin();
else enter();
