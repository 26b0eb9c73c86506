// How what the gateway tells is shown: each function draws one part of the page.

import { $, about, badge, brief, clock, count, dated, dimension, h, keptShare, keyed, limitPath, meter, plural, rate, say, setMeter, span, tone, used, words } from "/dashboard/dom.js";
import { byName } from "/dashboard/verdict.js";

/** How far back a number looks. A page that was not shown for a while has looked less often. */
const lately = (seconds) => (seconds < 58.5 ? `last ${Math.round(seconds)} s` : seconds < 62 ? "last min" : `last ${about(seconds)}`);

/** `measured`: what the page itself has seen of the series. */
export function tiles(status, measured) {
  const minute = status.last_minute;
  const waiting = status.queue.depth + status.queue.backing_off;
  const within = lately(minute.seconds);
  const quantile = (value) => (measured ? [span(value), lately(measured.seconds)] : ["–", ""]);
  const shown = [
    ["Waiting", brief(waiting), status.queue.backing_off ? `calls, ${brief(status.queue.backing_off)} to retry` : "calls", waiting ? "warn" : ""],
    ["In flight", brief(status.in_flight), "attempts", ""],
    ["Calls", `${rate(minute.calls / minute.seconds)}/s`, within, ""],
    ["Refused", brief(minute.refused), within, minute.refused ? "warn" : ""],
    ["Retries", brief(minute.retries), within, ""],
    ["429s met", brief(minute.too_many_requests), within, minute.too_many_requests ? "warn" : ""],
    ["First byte, p95", ...quantile(measured?.firstByte), ""],
    ["Overhead, p99", ...quantile(measured?.overhead), ""],
  ];
  keyed(
    $("tiles"),
    shown,
    ([name]) => name,
    ([name]) => h("div", {}, h("dt", {}, name), h("dd", {}, h("span"), " ", h("small"))),
    (tile, [, value, unit, level]) => {
      say(tile.querySelector("span"), value);
      say(tile.querySelector("small"), unit);
      tile.dataset.level = level;
    },
  );
}

function meterLines(cell, meters, key) {
  keyed(
    cell,
    meters,
    (one) => one.dimension,
    (one) => h("div", { class: "meter-line" }, h("span", {}, dimension(one.dimension)), meter(), h("b")),
    (line, one) => {
      const share = used(one);
      const kept = one.kept > 0 ? `, ${count(one.kept)} kept for higher priorities` : "";
      setMeter(line.children[1], share, `${key}, ${dimension(one.dimension)}: ${Math.round(share * 100)} percent used${kept}`, keptShare(one));
      say(line.children[2], `${Math.round(share * 100)} %`);
    },
  );
}

/** "250 of 500 requests / min kept for higher priorities": why calls wait though something is left. */
const keptOf = (one) => (one.kept > 0 ? `${brief(one.kept)} of ${brief(one.limit)} ${dimension(one.dimension)} kept for higher priorities` : "");

function lefts(cell, meters) {
  keyed(
    cell,
    meters,
    (one) => one.dimension,
    () => h("div"),
    (line, one) => say(line, `${brief(one.remaining)} of ${brief(one.limit)}`),
  );
}

export function limits(levels, refused, act) {
  keyed(
    $("limits-rows"),
    levels,
    (level) => `${level.limit}\n${level.key}`,
    (level) =>
      h(
        "tr",
        {},
        h("td", { class: "name" }, level.limit, h("small")),
        h("td", { class: "break" }, level.key || h("span", { class: "faint" }, "everybody")),
        h("td"),
        h("td", { class: "number" }),
        h(
          "td",
          { class: "actions" },
          h("button", { type: "button", class: "button small", "aria-label": `Boost … ${level.limit} ${level.key}`, onclick: () => act.boost(level) }, "Boost …"),
          h("button", { type: "button", class: "button small", "aria-label": `Reset … ${level.limit} ${level.key}`, onclick: () => act.resetLimit(level) }, "Reset …"),
        ),
      ),
    (row, level) => {
      const tags = [];
      if (level.meters.some((one) => one.binds)) tags.push(["holds calls up", "warn"]);
      if (refused.has(`${level.limit}\n${level.key}`)) tags.push(["refused calls", "warn"]);
      if (level.mode === "shadow") tags.push(["shadow", "info"]);
      if (level.boost) tags.push([`× ${level.boost.factor}, ${about(level.boost.ends_in_seconds)} left`, "info"]);
      const note = row.cells[0].querySelector("small");
      const kept = level.meters.map(keptOf).filter(Boolean);
      const wanted = [level.kind === "mirror" ? "mirrors the upstream" : "own", ...tags.map(([text]) => text), ...kept].join("|");
      if (note.dataset.said !== wanted) {
        note.dataset.said = wanted;
        note.replaceChildren(level.kind === "mirror" ? "mirrors the upstream " : "own ", ...tags.flatMap(([text, kind]) => [badge(text, kind), " "]), kept.join(" · "));
      }
      meterLines(row.cells[2], level.meters, `${level.limit} ${level.key}`);
      lefts(row.cells[3], level.meters);
    },
  );
}

const SOURCES = { headers: "answers' headers", refusals: "refusals alone", measured: "measured by us" };

export function learned(status) {
  // Of several accounts' levels the tightest is the one to see.
  const groups = new Map();
  const known = new Set(status.learned.filter((target) => target.limits.length).map((target) => target.name));
  for (const target of status.learned) {
    const limits = target.limits.length ? target.limits : target.in_flight_cap !== null && !known.has(target.name) ? [null] : [];
    for (const limit of limits) {
      const key = `${target.name}\n${limit?.dimension}\n${limit?.source}`;
      const group = groups.get(key);
      const isTighter = !group || (limit && limit.remaining / limit.limit < group.limit.remaining / group.limit.limit);
      groups.set(key, { key, accounts: (group?.accounts ?? 0) + 1, ...(isTighter ? { target, limit } : { target: group.target, limit: group.limit }) });
    }
  }
  const rows = [...groups.values()];
  keyed(
    $("learned-rows"),
    rows.slice(0, 100),
    ({ key }) => key,
    ({ target }) => h("tr", {}, h("td", { class: "name break" }, target.name, h("small"), h("div")), h("td"), h("td", { class: "number" }), h("td")),
    (row, { target, limit, accounts }) => {
      const notes = [];
      if (accounts > 1) notes.push(`the tightest of ${accounts} accounts`);
      if (target.token_charge) notes.push(`charges ${words(target.token_charge)}`);
      for (const pace of target.paced) if (pace.dimension === limit?.dimension) notes.push(`paced at ${brief(pace.rate)}`);
      if (limit?.kept > 0) notes.push(keptOf(limit));
      if (target.in_flight_cap !== null) notes.push(`${target.in_flight} of ${target.in_flight_cap} in flight`);
      say(row.cells[0].querySelector("small"), notes.join(" · "));
      const tags = limit?.binds ? [["holds calls up", "warn"]] : [];
      keyed(row.cells[0].querySelector("div"), tags, ([text]) => text, ([text, kind]) => badge(text, kind), () => {});
      if (!limit) {
        say(row.cells[3], "not known yet");
        return;
      }
      const one = { ...limit, burst: limit.limit };
      meterLines(row.cells[1], [one], target.name);
      lefts(row.cells[2], [one]);
      say(row.cells[3], `${SOURCES[limit.source] ?? limit.source}, ${span(limit.age_seconds)} ago`);
    },
  );
  $("learned-empty").hidden = rows.length > 0;
  const hidden = status.learned_in_all - status.learned.length;
  say($("learned-count"), hidden > 0 ? `the busiest ${status.learned.length} of ${count(status.learned_in_all)}` : "");
}

const ORDERS = [
  ["force-open", "Hold open"],
  ["force-half-open", "Probe"],
  ["force-closed", "Hold closed"],
  ["reset", "Reset"],
];

/** `history`: their changes by name; `said`: who changed them last, and why. */
export function breakers(status, history, said, act) {
  // Those that are not closed come first: of several accounts' the first is the one to see.
  const rows = byName(status.breakers);
  keyed(
    $("breakers-rows"),
    rows,
    (breaker) => breaker.name,
    (breaker) =>
      h(
        "li",
        { "data-breaker": breaker.name },
        h("div", { class: "breaker-line" }, h("strong", {}, breaker.name), h("span", { class: "badge" })),
        h("div", { class: "sub" }),
        h("ol", { class: "history", "aria-label": `Recent changes of ${breaker.name}` }),
        h(
          "div",
          { class: "breaker-acts", role: "group", "aria-label": `Override ${breaker.name}` },
          ORDERS.map(([order, text]) =>
            h("button", { type: "button", class: "button small", "data-order": order, onclick: () => act.breaker(breaker.name, order) }, text),
          ),
        ),
      ),
    (row, breaker) => {
      const state = row.querySelector(".badge");
      say(state, words(breaker.state));
      state.dataset.tone = tone(breaker.state);
      const probe = breaker.next_probe_in_seconds;
      const accounts = breaker.accounts > 1 ? (breaker.alike < breaker.accounts ? `${breaker.alike} of ${breaker.accounts} accounts` : `${breaker.accounts} accounts`) : "";
      say(row.querySelector(".sub"), [(breaker.state.startsWith("forced") && said.get(breaker.name)) || breaker.cause, probe !== null ? `next probe in ${span(probe)}` : "", accounts].filter(Boolean).join(" · "));
      keyed(
        row.querySelector(".history"),
        (history.get(breaker.name) ?? []).slice(0, 4),
        (change) => change.at + change.to,
        () => h("li"),
        (line, change) => say(line, `${clock(change.at)} ${words(change.from)} → ${words(change.to)}${change.accounts > 1 ? ` × ${change.accounts}` : ""}`),
      );
    },
  );
  $("breakers-empty").hidden = rows.length > 0;
  const open = rows.filter(({ state }) => state !== "closed").length;
  const shown = status.breakers_in_all > status.breakers.length ? `${status.breakers.length} of ${count(status.breakers_in_all)}` : "";
  say($("breakers-count"), rows.length ? [open ? `${open} not closed` : "all closed", shown].filter(Boolean).join(", ") : "");
}

const QUEUE_ROWS = 12;

export function queue(status) {
  keyed(
    $("queue-classes"),
    ["high", "normal", "low"],
    (name) => name,
    (name) => h("div", {}, h("span", {}, name), h("b")),
    (box, name) => say(box.lastChild, brief(status.queue.waiting[name] ?? 0)),
  );
  const rows = [
    ...status.waiting.map((one) => ({ ...one, by: one.limit ? limitPath(one.limit) : "a breaker, a pause or others' turn" })),
    ...status.backing_off.map((one) => ({ ...one, priority: "", by: `retry: ${one.target} failed (${words(one.after)})` })),
  ];
  keyed(
    $("queue-rows"),
    rows.slice(0, QUEUE_ROWS),
    (one) => `${one.tenant}\n${one.priority}\n${one.by}`,
    (one) => h("tr", {}, h("td", { class: "name break" }, one.tenant, h("small")), h("td", {}, one.priority), h("td", { class: "number" }), h("td", { class: "break" }, one.by)),
    (row, one) => {
      say(row.querySelector("small"), one.users > 1 ? `${one.user} and ${plural(one.users - 1, "other user", "other users")}` : (one.user ?? ""));
      say(row.cells[2], brief(one.calls));
    },
  );
  $("queue-table").hidden = rows.length === 0;
  $("queue-empty").hidden = rows.length > 0;
  const inAll = status.waiting_in_all + status.backing_off.length;
  const more = inAll > QUEUE_ROWS ? `the longest ${QUEUE_ROWS} of ${count(inAll)}` : "";
  say($("queue-count"), [status.queue.depth ? `oldest ${span(status.queue.oldest_seconds)}` : "", more].filter(Boolean).join(", "));
}

const SHARES = ["rate_limited", "retries", "error_rate"];
const DURATIONS = ["upstream_latency", "queue_wait", "overhead"];
const signal = (when, value) => (SHARES.includes(when) ? `${+(value * 100).toFixed(1)} %` : DURATIONS.includes(when) ? span(value) : count(value));

export function alerts(list) {
  const order = ["firing", "pending", "quiet"];
  const rows = [...list].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state));
  keyed(
    $("alerts-rows"),
    rows,
    (alert) => alert.name,
    (alert) => h("li", {}, h("div", { class: "breaker-line" }, h("strong", {}, alert.name), h("span", { class: "badge" })), h("div", { class: "sub" })),
    (row, alert) => {
      const state = row.querySelector(".badge");
      say(state, alert.state);
      state.dataset.tone = { firing: "bad", pending: "warn", quiet: "good" }[alert.state] ?? "";
      const value = alert.value === null ? "too few calls to tell" : `now ${signal(alert.when, alert.value)}`;
      const dead = alert.webhook?.last?.[0]?.error ? "its webhook fails" : "";
      const about = alert.about?.length ? `about ${alert.about.join(", ")}` : "";
      say(row.querySelector(".sub"), [`${words(alert.when)} above ${signal(alert.when, alert.above)}`, value, about, dead].filter(Boolean).join(" · "));
    },
  );
  $("alerts-empty").hidden = rows.length > 0;
  const firing = rows.filter((alert) => alert.state === "firing").length;
  say($("alerts-count"), rows.length ? (firing ? `${firing} firing` : "all quiet") : "");
}

const KIND_TONES = { throttle: "warn", retry: "info", breaker: "bad", override: "info", degradation: "bad", gap: "bad", alert: "bad", anomaly: "bad", learned: "good" };
export const kindBadge = (kind) => badge(kind, KIND_TONES[kind]);

const CAUSES = { breaker: "its circuit breaker is open", queue_full: "too many wait already", paused: "paused by an operator", draining: "the process is about to end" };
const wait = (micros) => span(micros / 1e6);

/** What an event or a record says, in a line. */
export function told(event, data) {
  const n = data.numbers ?? {};
  const by = data.limit ? limitPath(data.limit) : null;
  switch (event || data.what) {
    case "refused": {
      const numbers = n.allowed !== undefined ? ` Limit ${count(n.allowed)}, used ${count(n.used)}, asked ${count(n.requested)}.` : "";
      return `refused${n.waited_us ? ` after ${wait(n.waited_us)}` : ""}: ${by ?? CAUSES[data.why] ?? words(data.why ?? "")}.${numbers}`;
    }
    case "granted":
    case "waited":
      return `waited ${wait(n.waited_us ?? 0)}${by ? ` for ${by}` : ""}, then sent`;
    case "retry_scheduled":
    case "scheduled":
      return `attempt ${n.attempt} failed (${words(data.why ?? "unknown")}); next not before ${wait(n.delay_us)}`;
    case "attempt_failed":
    case "attempt failed":
      return `attempt ${n.attempt} failed: ${words(data.why ?? "unknown")}`;
    case "attempt_success":
    case "succeeded":
      return `attempt ${n.attempt} went well`;
    case "operation_failed":
    case "gave up":
      return `gave up after ${plural(n.attempts, "attempt", "attempts")}: ${words(data.after ?? "")}`;
    case "fell_back":
    case "fell back":
      return `not served by ${data.before} (${words(data.why ?? "")}); goes on at ${data.after}`;
    case "state_changed":
      return `${words(data.before ?? "")} → ${words(data.after ?? "")}`;
    case "limit_learned":
      return `${dimension(data.limit)}: ${count(n.allowed)}`;
    default: {
      const change = data.before || data.after ? `: ${[data.before, data.after].filter(Boolean).join(" → ")}` : by ? `: ${by}` : "";
      const who = data.who ? ` by ${data.who}` : "";
      return `${data.what}${change}${who}${data.why ? ` (${data.why})` : ""}${n.times ? `, ${n.times} times` : ""}`;
    }
  }
}

export function events(rows, explain) {
  keyed(
    $("events-rows"),
    rows,
    (row) => row.key,
    ({ event, data }) =>
      h(
        "li",
        {},
        h("time", { datetime: data.at, title: dated(data.at) }, clock(data.at)),
        kindBadge(data.kind),
        h("span", { class: "break" }, h("strong", {}, [data.tenant, data.user].filter(Boolean).join(" · ")), " ", told(event, data), data.target ? h("span", { class: "sub" }, data.target) : null),
        data.call ? h("button", { type: "button", class: "link", title: `Why? ${data.call}`, onclick: () => explain(data.call) }, data.call) : h("span"),
      ),
    () => {},
  );
}

const OUTCOMES = {
  waiting: ["waits", "warn"],
  granted: ["was held, then sent", "good"],
  limit: ["was refused by a limit", "bad"],
  too_large: ["was refused: too large for a limit", "bad"],
  queue_full: ["was refused: the queue is full", "bad"],
  breaker: ["was refused by a circuit breaker", "bad"],
  paused: ["was refused: paused by an operator", "bad"],
  draining: ["was refused: the process was about to end", "bad"],
};

export function explanation(answer) {
  const [text, kind] = OUTCOMES[answer.outcome] ?? [answer.outcome, ""];
  const binding = answer.limits.find((one) => one.binds);
  const said = [`${answer.target}, priority ${answer.priority}, of ${answer.tenant}. Since ${clock(answer.at)}; waited ${span(answer.waited_ms / 1000)}.`];
  if (binding) {
    said.push(
      `Held by ${binding.limit}${binding.key ? ` of ${binding.key}` : ""} on ${dimension(binding.dimension)}: it asked for ${count(binding.requested)}, ${count(binding.remaining)} of ${count(binding.allowed)} were left${binding.kept ? `, of which ${count(binding.kept)} are kept for calls of higher priority` : ""}, and ${count(binding.waiting)} were wanted before it.`,
    );
  }
  if (answer.after) said.push(`It waited after the upstream answered: ${words(answer.after)}.`);
  if (answer.breaker !== "closed") said.push(`The breaker was ${words(answer.breaker)}.`);
  if (answer.retry_after_ms !== null) said.push(`It made sense to come back after ${span(answer.retry_after_ms / 1000)}.`);
  const classes = ["high", "normal", "low"];
  const before = classes.slice(0, classes.indexOf(answer.priority) + 1).filter((name) => answer.ahead[name]);
  if (before.length) {
    const tenants = answer.ahead_tenants.map(([tenant, calls]) => `${tenant} (${count(calls)})`);
    said.push(`Ahead of it: ${before.map((name) => `${count(answer.ahead[name])} ${name}`).join(", ")}${tenants.length ? `; of its own priority most of ${tenants.join(", ")}` : ""}.`);
  }
  return h(
    "div",
    { class: "answer" },
    h("h3", {}, h("span", { class: "mono" }, answer.call), " ", badge(text, kind)),
    said.map((line) => h("p", {}, line)),
    answer.limits.length
      ? h(
          "div",
          { class: "scroll", tabindex: 0, role: "region", "aria-label": "Limits that the call had to fit" },
          h(
            "table",
            {},
            h("thead", {}, h("tr", {}, ["Limit", "Whose", "Dimension"].map((name) => h("th", { scope: "col" }, name)), ["Asked", "Left", "Allowed"].map((name) => h("th", { scope: "col", class: "number" }, name)))),
            h(
              "tbody",
              {},
              answer.limits.map((one) =>
                h("tr", {}, h("td", { class: "name" }, one.limit, " ", one.binds ? badge("binds", "warn") : null, one.shadow ? badge("shadow", "info") : null), h("td", { class: "break" }, one.key || "everybody"), h("td", {}, dimension(one.dimension)), [one.requested, one.remaining, one.allowed].map((number) => h("td", { class: "number" }, count(number)))),
              ),
            ),
          ),
        )
      : null,
  );
}

/** Instants, in microseconds since 1970; all else that ends in `_us` is how long something took. */
const INSTANTS = new Set(["since_us"]);

/** A number of a record, whose unit is last in its name. */
function numbered([name, value]) {
  const [, what, unit] = name.match(/^(.*?)(_us|_ppm)?$/);
  if (INSTANTS.has(name)) return `${words(what)} ${dated(value / 1000)}`;
  if (unit === "_us") return `${words(what)} ${wait(value)}`;
  return unit === "_ppm" ? `${words(what)} ${+(value / 1e4).toPrecision(3)} %` : `${words(name)} ${count(value)}`;
}

export function auditRows(records, explain) {
  $("audit-rows").replaceChildren(
    ...records.map(({ record }) =>
      h(
        "tr",
        {},
        h("td", { class: "faint" }, dated(record.at)),
        h("td", {}, kindBadge(record.kind)),
        h("td", {}, record.what),
        h("td", { class: "break" }, [record.tenant, record.user].filter(Boolean).join(" · ")),
        h("td", { class: "break" }, [record.target, record.limit].filter(Boolean).join(" · "), record.call ? h("button", { type: "button", class: "link", onclick: () => explain(record.call) }, record.call) : null),
        h("td", { class: "break" }, [[record.before, record.after].filter(Boolean).join(" → "), ...Object.entries(record.numbers ?? {}).map(numbered)].filter(Boolean).join(", ")),
        h("td", { class: "break" }, [record.who, record.why].filter(Boolean).join(": ")),
      ),
    ),
  );
}
