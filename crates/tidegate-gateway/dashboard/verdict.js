// The first line: whether anything is held back or refused now, whose, and by what; and then what else is out of the ordinary.

import { $, clock, count, dimension, limitName, limitPath, plural, say, span, used, whose, words } from "/dashboard/dom.js";
import { causing } from "/dashboard/refused.js";

/** As many causes of all kinds together are told in the first line; all of them are below it. */
const TOLD = 2;

const REASONS = {
  limit: "a limit",
  too_large: "a limit that is smaller than the call, or lets nothing through",
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
    const group = groups.get(of(row)) ?? { cause: of(row), row, calls: 0, by: new Map() };
    group.calls += row.calls;
    group.by.set(whose(row), (group.by.get(whose(row)) ?? 0) + row.calls);
    groups.set(of(row), group);
  }
  const most = (one, other) => other[1] - one[1];
  return [...groups.values()].sort((one, other) => other.calls - one.calls).map((group) => ({ ...group, callers: [...group.by].sort(most) }));
}

/** By this limits are told apart, as far as they are causes of their own. */
const identity = ({ name, key, dimension: what }) => `${name}\n${key}\n${what}`;

/** What is kept of each limit, by its path, for higher priorities than those that wait for it. */
function keptByPath({ limits, learned }) {
  const own = limits.flatMap(({ limit, key, meters }) => meters.map((one) => [[limit, key, one.dimension], one]));
  const told = learned.flatMap(({ name, limits: known }) => known.map((one) => [["learned", name, one.dimension], one]));
  return new Map([...own, ...told].filter(([, { kept }]) => kept > 0).map(([path, one]) => [path.filter(Boolean).join("/"), one]));
}

/** Who waits in the queue, for what. */
function held(status) {
  const { waiting, waiting_in_all: inAll } = status;
  const groups = grouped(waiting, ({ limit }) => (limit ? limitPath(limit) : ""));
  const kept = keptByPath(status);
  const ofIt = ({ limit }) => (kept.has(limit) ? `, of which ${count(kept.get(limit).kept)} are kept for higher priorities` : "");
  return groups.map(({ cause, row, calls, callers }) => ({
    text: `${those(callers, calls, inAll > waiting.length)}${cause ? ` by ${cause}${ofIt(row)}` : ""}`,
    limit: row.limit ? identity(causing(row)) : null,
  }));
}

/** Who waits to be sent again, after what. */
function failed({ backing_off: rows }) {
  const groups = grouped(rows, ({ target, after }) => `${target} failed (${words(after)})`);
  return groups.map(({ cause, calls, callers }) => ({ text: `${those(callers, calls)}, as ${cause}` }));
}

/** The first of each list, then the second of each, up to `TOLD`; for each list what was chosen of it. */
function chosen(lists) {
  const told = lists.map(() => []);
  let room = TOLD;
  for (let at = 0; at < TOLD; at++) {
    lists.forEach((list, of) => {
      if (at >= list.length || room === 0) return;
      told[of].push(list[at]);
      room -= 1;
    });
  }
  return told;
}

/** Refusals as sentences; those of limits that differ in no more than the limit are one. */
function refusals(told) {
  const sentences = [];
  const byLimits = told.filter(({ isPlain }) => isPlain).map(({ text }) => text);
  if (byLimits.length) sentences.push(`Calls were refused ${byLimits.join("; ")}.`);
  return [...told.filter(({ isPlain }) => !isPlain).map(({ text }) => text), ...sentences];
}

/** "3 other limits hold calls back or refused some." */
function others(holding, refusing, told, hasMore) {
  const known = new Set(told.map(({ limit }) => limit));
  const untold = (list) => each(list.map(({ limit }) => limit)).filter((limit) => limit && !known.has(limit));
  const [held, refused] = [untold(holding), untold(refusing)];
  const limits = each([...held, ...refused]).length;
  if (limits === 0) return [];
  const does = [held.length ? (limits === 1 ? "holds calls back" : "hold calls back") : "", refused.length ? (held.length ? "refused some" : "refused calls") : ""];
  return [`${hasMore ? "At least " : ""}${plural(limits, "other limit", "other limits")} ${does.filter(Boolean).join(" or ")}.`];
}

/** By what calls were refused, and whose. */
function refusal({ why, name, key, dimension: what, isShut, target, calls, whose: who }, breakers) {
  const limit = name ? `${limitName(name)}${key ? ` of ${key}` : ""}${what ? ` (${dimension(what)})` : ""}` : "";
  const callers = those(who.most(), calls, who.hasMore);
  if (isShut) return `Calls were refused by ${limit}, which lets nothing through: ${callers}.`;
  if (why === "too_large") return `Calls are larger than ${limit} takes: ${callers}.`;
  if (limit) return `by ${limit}: ${callers}`;
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

/** `seen`: what refused calls, as far as the page was told; `isLost`: nothing newer can be told. */
export function verdict(status, seen, isLost) {
  const { queue } = status;
  const open = byName(status.breakers).filter(({ state }) => state !== "closed" && state !== "forced_closed");
  const minute = status.last_minute;
  // Those that most were refused for come first.
  const reasons = Object.entries(minute.reasons).sort((one, other) => other[1] - one[1]);
  // What the gateway no longer counts as refused is not told as refused.
  const causes = reasons.length > 0 ? seen : [];
  const [wrong, said] = [[], []];
  if (isPause(status.paused)) wrong.push("Calls are paused by an operator.");
  if (status.state === "draining") wrong.push("The process is about to end and takes no new calls.");
  const trail = unwritten(status.audit);
  if (trail) wrong.push(trail);
  else if (status.audit.lost > 0) said.push(`${plural(status.audit.lost, "record", "records")} of the audit trail could not be kept since the start.`);
  if (causes.length === 0 && reasons.length > 0 && !(trail && reasons[0][0] === "audit")) wrong.push(`Calls were refused by ${reason(reasons[0][0])}.`);

  // A breaker tells of an upstream that fails, which is worse than a limit that does what it is there for.
  const isWorse = ({ why }) => Number(why === "breaker");
  const refusing = [...causes]
    .sort((one, other) => isWorse(other) - isWorse(one))
    .map((cause) => ({
      text: refusal(cause, open),
      isPlain: Boolean(cause.name) && !cause.isShut && cause.why !== "too_large",
      limit: cause.name ? identity(cause) : null,
    }));
  const holding = queue.depth > 0 ? held(status) : [];
  const failing = queue.backing_off > 0 ? failed(status) : [];
  const refusers = new Set(causes.map(({ target }) => target));
  const idle = open.filter(({ name }) => !refusers.has(name)).map((breaker) => ({ text: `${breaker.name} ${stands(breaker)}.` }));
  // Each of what is wrong with the gateway itself is a kind of its own.
  const told = chosen([...wrong.map((text) => [{ text }]), holding, refusing, failing, idle]);
  const [ofHeld, ofRefused, ofFailed, ofIdle] = told.slice(wrong.length);
  const texts = (list) => list.map(({ text }) => text).join("; ");
  const title = told.slice(0, wrong.length).flat().map(({ text }) => text);
  if (ofHeld.length) title.push(`Calls are being held back: ${texts(ofHeld)}.`);
  else if (queue.depth > 0 && holding.length === 0) title.push("Calls are being held back.");
  title.push(...refusals(ofRefused));
  if (ofFailed.length) title.push(`Calls wait to be sent again: ${texts(ofFailed)}.`);
  if (title.length === 0) title.push("Nothing is being held back.");
  title.push(...ofIdle.map(({ text }) => text));
  title.push(...others(holding, refusing, [...ofHeld, ...ofRefused], status.waiting_in_all > status.waiting.length));

  if (status.paused) said.push(`Reason: ${status.paused}.`);
  if (queue.depth > 0) said.push(`${plural(queue.depth, "call waits", "calls wait")}; the oldest has waited ${span(queue.oldest_seconds)}.`);
  if (queue.backing_off > 0) said.push(`${plural(queue.backing_off, "call waits", "calls wait")} to be sent again.`);
  if (idle.length > ofIdle.length) said.push(`${plural(open.length, "breaker is", "breakers are")} not closed: ${open.slice(0, 5).map(({ name }) => name).join(", ")}${open.length > 5 ? ", …" : ""}.`);
  if (reasons.length > 0) said.push(`Refused within the last ${minute.seconds < 60 ? `${minute.seconds} s` : "minute"}: ${reasons.map(([name, calls]) => `${count(calls)} by ${reason(name)}`).join(", ")}.`);
  if (said.length === 0) said.push(calm(status));
  const isBroken = (trail && status.audit.on_failure === "refuse") || reasons.some(([name]) => name === "audit" || (name === "breaker" && open.length > 0));
  const isQuiet = !trail && queue.depth + queue.backing_off + open.length + causes.length + reasons.length === 0 && status.state === "serving";
  if (isLost) {
    // What was last known stays to be read, but not as what is.
    said.unshift(...title);
    title.splice(0, title.length, `Connection lost: what follows is what was last known, at ${clock(status.at)}.`);
  }
  $("verdict").dataset.level = isLost ? "lost" : isPause(status.paused) || isBroken ? "bad" : isQuiet ? "good" : "warn";
  say($("verdict-title"), title.join(" "));
  say($("verdict-text"), said.join(" "));
}
