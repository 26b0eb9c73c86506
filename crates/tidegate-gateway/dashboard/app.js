// What the page does: keeps the line open, remembers what came, and redraws when there is something new to see.

import { $, count, h, plural, say, toast, used } from "/dashboard/dom.js";
import { Charts, sums } from "/dashboard/charts.js";
import { Line, ask, role, series, token } from "/dashboard/link.js";
import { act, pause } from "/dashboard/orders.js";
import { Refused } from "/dashboard/refused.js";
import { painted } from "/dashboard/theme.js";
import { HAPPENING, explainedBy } from "/dashboard/trail.js";
import { verdict } from "/dashboard/verdict.js";
import * as views from "/dashboard/views.js";

const ROWS = 10;
const EVENTS_KEPT = 500;
const EVENTS_SHOWN = 80;

const state = { link: "off", why: "", status: null, measured: null, all: null, page: 0, events: [], heldEvents: null, history: new Map(), said: new Map(), isPointed: false, lost: 0, sequence: 0 };
const refused = new Refused();
const charts = new Charts({ attempts: $("chart-attempts"), queue: $("chart-queue"), latency: $("chart-latency") });
painted(() => charts.repaint());

// ---- what is drawn when

let isDue = false;
function redraw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    drawEvents();
    if (!state.status) return;
    verdict(state.status, refused.causes(), state.link === "lost");
    views.tiles(state.status, state.measured);
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

$("events-kind").append(h("option", { value: "" }, "All kinds"), ...[...HAPPENING, "alert", "anomaly", "learned"].map((kind) => h("option", { value: kind }, kind)));

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
    if (data.kind === "alert") look();
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
explainedBy(explain);
$("pause").addEventListener("click", () => pause(isPaused()));

// ---- the line, and who may read it

const isLink = (now, why) => {
  drawLink(now, why);
  redraw();
};
const line = new Line(take, isLink, (error) => {
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
    const measured = charts.sample(sums(await series(), Date.now() / 1000));
    if (measured) state.measured = measured;
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
