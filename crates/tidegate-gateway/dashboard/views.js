// How what the gateway tells is shown: each function draws one part of the page.

import { $, about, badge, brief, clock, count, dated, dimension, h, keyed, limitName, limitPath, meter, plural, rate, say, setMeter, span, tone, words } from "/dashboard/dom.js";

const lets = (breaker) => breaker.state === "closed" || breaker.state === "forced_closed";
const each = (names) => [...new Set(names)];
const REASONS = {
  limit: "a limit",
  too_large: "a limit that is smaller than the call",
  breaker: "a circuit breaker",
  queue_full: "the queue, which is full",
  paused: "a pause",
  draining: "the end of the process",
  audit: "the audit trail, which cannot be written",
};

/** Of `calls` those of `most`, who has `share` of them, beside so many others. */
function whoseCalls(most, share, calls, others) {
  if (others === 0) return `those of ${most}`;
  return share * 2 > calls ? `mostly those of ${most}` : `those of ${most} and ${plural(others, "other", "others")}`;
}

/** What a limit did within the last minute: whose calls it refused. */
function refusing({ name, dimension: what, why, calls, whose }) {
  const limit = `${limitName(name)}${what ? ` (${dimension(what)})` : ""}`;
  const those = whoseCalls(whose[0][0], whose[0][1], calls, whose.length - 1);
  return why === "too_large" ? `Calls are larger than ${limit} takes: ${those}.` : `Calls were refused by ${limit}: ${those}.`;
}

/** The first thing that an operator wants to know: whether anything is held back or refused, whose, and by what. */
export function verdict(status, minute, refused) {
  const open = status.breakers.filter((breaker) => !lets(breaker));
  const depth = status.queue.depth;
  const isPaused = status.paused !== null && status.paused !== undefined;
  const title = [];
  const said = [];
  if (isPaused) {
    title.push("Calls are paused by an operator.");
    if (status.paused) said.push(`Reason: ${status.paused}.`);
  }
  if (depth > 0) {
    const [first] = status.waiting;
    const by = first?.limit ? ` by ${limitPath(first.limit)}` : "";
    title.push(first ? `Calls are being held back: ${whoseCalls(first.tenant, first.calls, depth, each(status.waiting.map(({ tenant }) => tenant)).length - 1)}${by}.` : "Calls are being held back.");
    said.push(`${plural(depth, "call waits", "calls wait")}; the oldest has waited ${span(status.queue.oldest_seconds)}.`);
  }
  if (open.length > 0) {
    title.push(`Calls are refused: ${open[0].name} is ${words(open[0].state)}.`);
    const names = each(open.map((breaker) => breaker.name));
    if (names.length > 1) said.push(`${count(names.length)} breakers are not closed: ${names.slice(0, 3).join(", ")}${names.length > 3 ? ", …" : ""}.`);
  }
  const [limit, ...others] = refused;
  if (limit) title.push(refusing(limit));
  if (others.length) said.push(`Also refused by ${each(others.map(({ name }) => limitName(name))).slice(0, 3).join(", ")}.`);
  const reasons = minute?.reasons ?? [];
  if (title.length === 0 && reasons.length) title.push(`Nobody waits, but calls were refused by ${REASONS[reasons[0][0]] ?? words(reasons[0][0])}.`);
  if (reasons.length) said.push(`Refused within the last minute: ${reasons.map(([reason, calls]) => `${count(calls)} by ${REASONS[reason] ?? words(reason)}`).join(", ")}.`);
  if (title.length === 0) title.push("Nothing is being held back.");
  if (said.length === 0) {
    const fullest = status.limits.map((one) => [Math.max(0, ...one.meters.map(used)), one]).sort((a, b) => b[0] - a[0])[0];
    if (fullest) said.push(`The fullest limit is ${fullest[1].limit}${fullest[1].key ? ` of ${fullest[1].key}` : ""}, used to ${Math.round(fullest[0] * 100)} %.`);
    else said.push("No limit of yours is configured, or none has been used yet; upstreams' limits are learned.");
  }
  $("verdict").dataset.level = isPaused || open.length ? "bad" : depth || limit || reasons.length ? "warn" : "good";
  say($("verdict-title"), title.join(" "));
  say($("verdict-text"), said.join(" "));
}

const used = (one) => 1 - one.remaining / Math.max(1, Math.min(one.burst, one.limit));

export function tiles(status, minute) {
  const per = (number) => (minute ? [brief(number), "last min"] : ["–", ""]);
  const shown = [
    ["Waiting", brief(status.queue.depth), "calls", status.queue.depth ? "warn" : ""],
    ["In flight", brief(status.in_flight), "attempts", ""],
    ["Calls", minute ? rate(minute.calls / minute.seconds) : "–", "per second", ""],
    ["Refused", ...per(minute?.refused), minute?.refused ? "warn" : ""],
    ["Retries", ...per(minute?.retries), ""],
    ["429s met", ...per(minute?.tooMany), minute?.tooMany ? "warn" : ""],
    ["First byte, p95", span(minute?.firstByte), "", ""],
    ["Overhead, p99", span(minute?.overhead), "", ""],
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
      setMeter(line.children[1], share, `${key}, ${dimension(one.dimension)}: ${Math.round(share * 100)} percent used`);
      say(line.children[2], `${Math.round(share * 100)} %`);
    },
  );
}

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
          h("button", { type: "button", class: "button small", "aria-label": `Boost … ${level.limit}`, onclick: () => act.boost(level) }, "Boost …"),
          h("button", { type: "button", class: "button small", "aria-label": `Reset … ${level.limit}`, onclick: () => act.resetLimit(level) }, "Reset …"),
        ),
      ),
    (row, level) => {
      const tags = [];
      if (level.meters.some((one) => one.binds)) tags.push(["holds calls up", "warn"]);
      if (refused.has(`${level.limit}\n${level.key}`)) tags.push(["refused calls", "warn"]);
      if (level.mode === "shadow") tags.push(["shadow", "info"]);
      if (level.boost) tags.push([`× ${level.boost.factor}, ${about(level.boost.ends_in_seconds)} left`, "info"]);
      const note = row.cells[0].querySelector("small");
      const wanted = [level.kind === "mirror" ? "mirrors the upstream" : "own", ...tags.map(([text]) => text)].join("|");
      if (note.dataset.said !== wanted) {
        note.dataset.said = wanted;
        note.replaceChildren(level.kind === "mirror" ? "mirrors the upstream " : "own ", ...tags.flatMap(([text, kind]) => [badge(text, kind), " "]));
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
  for (const target of status.learned) {
    const limits = target.limits.length ? target.limits : target.in_flight_cap !== null ? [null] : [];
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
    ({ target }) => h("tr", {}, h("td", { class: "name break" }, target.name, h("small")), h("td"), h("td", { class: "number" }), h("td")),
    (row, { target, limit, accounts }) => {
      const notes = [];
      if (accounts > 1) notes.push(`the tightest of ${accounts} accounts`);
      if (target.token_charge) notes.push(`charges ${words(target.token_charge)}`);
      for (const pace of target.paced) if (pace.dimension === limit?.dimension) notes.push(`paced at ${brief(pace.rate)}`);
      if (target.in_flight_cap !== null) notes.push(`${target.in_flight} of ${target.in_flight_cap} in flight`);
      say(row.cells[0].querySelector("small"), notes.join(" · "));
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

export function breakers(status, history, act) {
  // Those that are not closed come first: of several accounts' the first is the one to see.
  const groups = new Map();
  for (const breaker of status.breakers) {
    const group = groups.get(breaker.name) ?? { ...breaker, alike: breaker.accounts, accounts: 0 };
    group.accounts += breaker.accounts;
    groups.set(breaker.name, group);
  }
  const rows = [...groups.values()];
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
      say(row.querySelector(".sub"), [breaker.cause, probe !== null ? `next probe in ${span(probe)}` : "", accounts].filter(Boolean).join(" · "));
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
  const open = rows.filter((breaker) => breaker.state !== "closed").length;
  const shown = status.breakers_in_all > status.breakers.length ? `${status.breakers.length} of ${count(status.breakers_in_all)}` : "";
  say($("breakers-count"), rows.length ? [open ? `${open} not closed` : "all closed", shown].filter(Boolean).join(", ") : "");
}

export function queue(status) {
  keyed(
    $("queue-classes"),
    ["high", "normal", "low"],
    (name) => name,
    (name) => h("div", {}, h("span", {}, name), h("b")),
    (box, name) => say(box.lastChild, brief(status.queue.waiting[name] ?? 0)),
  );
  keyed(
    $("queue-rows"),
    status.waiting.slice(0, 12),
    (one) => `${one.tenant}\n${one.priority}`,
    (one) => h("tr", {}, h("td", { class: "name break" }, one.tenant), h("td", {}, one.priority), h("td", { class: "number" }), h("td", { class: "break" })),
    (row, one) => {
      say(row.cells[2], brief(one.calls));
      say(row.cells[3], one.limit ? limitPath(one.limit) : "a breaker, a pause or others' turn");
    },
  );
  const some = status.waiting.length > 0;
  $("queue-table").hidden = !some;
  $("queue-empty").hidden = some;
  const more = status.waiting_in_all > 12 ? `the longest 12 of ${count(status.waiting_in_all)}` : "";
  say($("queue-count"), some ? [`oldest ${span(status.queue.oldest_seconds)}`, more].filter(Boolean).join(", ") : "");
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
      return `refused: ${by ?? CAUSES[data.why] ?? words(data.why ?? "")}${n.waited_us ? ` after ${wait(n.waited_us)}` : ""}.${numbers}`;
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
      `Held by ${binding.limit}${binding.key ? ` of ${binding.key}` : ""} on ${dimension(binding.dimension)}: it asked for ${count(binding.requested)}, ${count(binding.remaining)} of ${count(binding.allowed)} were left, and ${count(binding.waiting)} were wanted before it.`,
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
        h("td", { class: "break" }, [[record.before, record.after].filter(Boolean).join(" → "), ...Object.entries(record.numbers ?? {}).map(([name, value]) => (name.endsWith("_us") ? `${words(name.slice(0, -3))} ${wait(value)}` : `${words(name)} ${count(value)}`))].filter(Boolean).join(", ")),
        h("td", { class: "break" }, [record.who, record.why].filter(Boolean).join(": ")),
      ),
    ),
  );
}
