// The first line: whether anything is held back or refused now, whose, and by what; and then what else is out of the ordinary.

import { $, count, dimension, limitName, limitPath, plural, say, span, used, whose, words } from "/dashboard/dom.js";

/** As many causes are told in the first line; the numbers of all are below it. */
const TOLD = 2;

const REASONS = {
  limit: "a limit",
  too_large: "a limit that is smaller than the call",
  breaker: "a circuit breaker",
  queue_full: "the queue, which is full",
  paused: "a pause",
  draining: "the end of the process",
  audit: "the audit trail, which cannot be written",
};
const reason = (name) => REASONS[name] ?? words(name);

const each = (names) => [...new Set(names)];
const isPause = (paused) => paused !== null && paused !== undefined;

/** "those of acme and 2 others". `most` are `[name, calls]`, those with most calls first; `hasMore`: there are others yet. */
function those(most, calls, hasMore = false) {
  const [[first, share], ...others] = most;
  if (others.length === 0 && !hasMore) return `those of ${first}`;
  if (share * 2 > calls) return `mostly those of ${first}`;
  return `those of ${first} and ${hasMore ? "more than " : ""}${plural(others.length, "other", "others")}`;
}

/** The rows of one kind added up by what `of` says of them, the most calls first. */
function grouped(rows, of) {
  const groups = new Map();
  for (const row of rows) {
    const group = groups.get(of(row)) ?? { cause: of(row), calls: 0, by: new Map() };
    group.calls += row.calls;
    group.by.set(whose(row), (group.by.get(whose(row)) ?? 0) + row.calls);
    groups.set(of(row), group);
  }
  const most = (one, other) => other[1] - one[1];
  return [...groups.values()].sort((one, other) => other.calls - one.calls).map((group) => ({ ...group, callers: [...group.by].sort(most) }));
}

/** Who waits in the queue, for what. */
function held({ waiting, waiting_in_all: inAll }) {
  const groups = grouped(waiting, ({ limit }) => (limit ? limitPath(limit) : ""));
  return groups.slice(0, TOLD).map(({ cause, calls, callers }) => `${those(callers, calls, inAll > waiting.length)}${cause ? ` by ${cause}` : ""}`);
}

/** Who waits to be sent again, after what. */
function failed({ backing_off: rows }) {
  const groups = grouped(rows, ({ target, after }) => `${target} failed (${words(after)})`);
  return groups.slice(0, TOLD).map(({ cause, calls, callers }) => `${those(callers, calls)}, as ${cause}`);
}

/** By what calls were refused, and whose. */
function refusal({ why, name, key, dimension: what, isShut, target, calls, whose: who }, breakers) {
  const limit = name ? `${limitName(name)}${key ? ` of ${key}` : ""}${what ? ` (${dimension(what)})` : ""}` : "";
  const callers = those(who.most(), calls, who.hasMore);
  if (isShut) return `Calls were refused by ${limit}, which lets nothing through: ${callers}.`;
  if (why === "too_large") return `Calls are larger than ${limit} takes: ${callers}.`;
  if (limit) return `Calls were refused by ${limit}: ${callers}.`;
  if (why !== "breaker") return `Calls were refused by ${reason(why)}: ${callers}.`;
  const open = breakers.find((breaker) => breaker.name === target);
  return `Calls were refused as ${target} ${open ? stands(open) : "was not closed"}: ${callers}.`;
}

/** "is open on 3 of 4 accounts". */
function stands({ state, alike, accounts, next_probe_in_seconds: probe }) {
  const where = alike < accounts ? ` on ${alike} of ${accounts} accounts` : "";
  const next = state === "open" && probe !== null && probe <= 0 ? ", and tries the next call" : "";
  return `is ${words(state)}${where}${next}`;
}

/** Breakers of one name as one: of the state that comes first, with how many accounts there are, and how many of them stand `alike`. */
export function byName(breakers) {
  const groups = new Map();
  for (const breaker of breakers) {
    const group = groups.get(breaker.name) ?? { ...breaker, alike: breaker.accounts, accounts: 0 };
    group.accounts += breaker.accounts;
    groups.set(breaker.name, group);
  }
  return [...groups.values()];
}

/** What is worth saying where all goes well. */
function calm(status) {
  const levels = status.limits.filter((level) => level.mode !== "shadow").map((level) => [Math.max(0, ...level.meters.map(used)), level]);
  const [share, fullest] = levels.sort((one, other) => other[0] - one[0])[0] ?? [];
  if (!fullest) return "No limit of yours is configured, or none has been used yet; upstreams' limits are learned.";
  const percent = Math.round(share * 100);
  return percent > 0 ? `The fullest limit is ${fullest.limit}${fullest.key ? ` of ${fullest.key}` : ""}, used to ${percent} %.` : "No limit has been used lately.";
}

/** What is wrong with the audit trail, if anything is. */
function unwritten({ state, why, lost, on_failure: onFailure }) {
  const refuses = onFailure === "refuse";
  if (state === "off") return refuses ? "There is no audit trail, and calls are refused without one." : "";
  if (state !== "failing") return "";
  const said = [`The audit trail is not being written${why ? `: ${why}` : ""}`];
  if (refuses) said.push("calls are refused until it is");
  if (lost > 0) said.push(`${plural(lost, "record is", "records are")} lost so far`);
  return `${said.join("; ")}.`;
}

/** `minute`: the counters of the last one; `causes`: of its refusals. */
export function verdict(status, minute, causes) {
  const { queue } = status;
  const open = byName(status.breakers).filter(({ state }) => state !== "closed" && state !== "forced_closed");
  const reasons = minute?.reasons ?? [];
  const [title, said] = [[], []];
  if (isPause(status.paused)) title.push("Calls are paused by an operator.");
  if (status.state === "draining") title.push("The process is about to end and takes no new calls.");
  const trail = unwritten(status.audit);
  if (trail) title.push(trail);
  else if (status.audit.lost > 0) said.push(`${plural(status.audit.lost, "record", "records")} of the audit trail could not be kept since the start.`);
  if (status.paused) said.push(`Reason: ${status.paused}.`);
  if (queue.depth > 0) {
    const callers = held(status);
    title.push(callers.length ? `Calls are being held back: ${callers.join("; ")}.` : "Calls are being held back.");
    said.push(`${plural(queue.depth, "call waits", "calls wait")}; the oldest has waited ${span(queue.oldest_seconds)}.`);
  }
  if (queue.backing_off > 0) {
    title.push(`Calls wait to be sent again: ${failed(status).join("; ")}.`);
    said.push(`${plural(queue.backing_off, "call waits", "calls wait")} to be sent again.`);
  }
  for (const cause of causes.slice(0, TOLD)) title.push(refusal(cause, open));
  if (causes.length === 0 && reasons.length > 0 && !(trail && reasons[0][0] === "audit")) title.push(`Calls were refused by ${reason(reasons[0][0])}.`);
  if (title.length === 0) title.push("Nothing is being held back.");
  const told = new Set(causes.slice(0, TOLD).map(({ target }) => target));
  const untold = open.filter(({ name }) => !told.has(name));
  for (const breaker of untold.slice(0, TOLD)) title.push(`${breaker.name} ${stands(breaker)}.`);
  if (untold.length > TOLD) said.push(`${count(open.length)} breakers are not closed: ${each(open.map(({ name }) => name)).slice(0, 5).join(", ")}${open.length > 5 ? ", …" : ""}.`);
  if (reasons.length > 0) said.push(`Refused within the last minute: ${reasons.map(([name, calls]) => `${count(calls)} by ${reason(name)}`).join(", ")}.`);
  if (said.length === 0) said.push(calm(status));
  const isBroken = (trail && status.audit.on_failure === "refuse") || reasons.some(([name]) => name === "audit" || (name === "breaker" && open.length > 0));
  const isQuiet = !trail && queue.depth + queue.backing_off + open.length + causes.length + reasons.length === 0 && status.state === "serving";
  $("verdict").dataset.level = isPause(status.paused) || isBroken ? "bad" : isQuiet ? "good" : "warn";
  say($("verdict-title"), title.join(" "));
  say($("verdict-text"), said.join(" "));
}
