// What refused calls within the last minute, and whose: told by the events of refusals, counted by second and bounded.

import { limitParts, whose } from "/dashboard/dom.js";

const SECONDS = 60;
/** So many causes, callers and levels are told apart; of the others it is only known that there are more. */
const APART = 200;
const RECENT = 1000;

/** Counts by name, up to a bound. */
class Counts {
  constructor() {
    this.by = new Map();
    this.calls = 0;
    this.hasMore = false;
  }

  add(name, calls) {
    this.calls += calls;
    if (this.by.has(name) || this.by.size < APART) this.by.set(name, (this.by.get(name) ?? 0) + calls);
    else this.hasMore = true;
  }

  /** Takes back one call. */
  take(name) {
    const calls = this.by.get(name);
    if (calls === undefined) return;
    this.calls -= 1;
    if (calls > 1) this.by.set(name, calls - 1);
    else this.by.delete(name);
  }

  addAll(other) {
    for (const [name, calls] of other.by) this.add(name, calls);
    this.calls += other.calls - [...other.by.values()].reduce((sum, calls) => sum + calls, 0);
    this.hasMore ||= other.hasMore;
  }

  /** `[name, calls]`, the most first. */
  most() {
    return [...this.by].sort((one, other) => other[1] - one[1]);
  }
}

/** The limit that held or refused a call. The level of a user or an organization is whose it is, and has no key as a cause; that of a model or an account has. */
export function causing({ limit, tenant, user }) {
  const { name, key, dimension } = limitParts(limit);
  const isCallers = key !== "" && key.split("/").every((part) => part === user || part === tenant);
  return { name, key: isCallers ? "" : key, dimension, level: key };
}

/** By what a call was refused, in the words that tell one cause from another, and whose it was. */
function causeOf({ why, limit, target, tenant, user, numbers }) {
  const caller = whose({ tenant, user });
  if (!limit) return { cause: { why, target: why === "breaker" ? target : "" }, whose: caller, level: null };
  const { name, key, dimension, level } = causing({ limit, tenant, user });
  const isShut = numbers?.allowed === 0;
  return { cause: { why, name, key, dimension, isShut }, whose: key === level ? caller : level, level: `${name}\n${level}` };
}

const made = (cause) => ({ ...cause, whose: new Counts(), levels: new Counts() });

/** The entry of a map for a cause, if there is room for it. */
function entry(map, cause) {
  const name = JSON.stringify(cause);
  if (!map.has(name) && map.size < APART) map.set(name, made(cause));
  return map.get(name);
}

export class Refused {
  constructor() {
    this.seconds = new Map();
    /** The last ones by call and target: another upstream may yet take the call, or has taken it (`null`) before this is told. */
    this.recent = new Map();
    /** The gateway's clock as far as it has told: a browser may be on another time. */
    this.second = 0;
    this.kept = null;
  }

  /** It is so late at the gateway. */
  clock(at) {
    const second = Math.floor(Date.parse(at) / 1000);
    if (!(second > this.second)) return;
    this.second = second;
    this.kept = null;
    for (const one of this.seconds.keys()) if (one <= second - SECONDS) this.seconds.delete(one);
  }

  /** One refusal, as its event tells it. */
  take(data) {
    this.clock(data.at);
    const second = Math.floor(Date.parse(data.at) / 1000);
    if (second <= this.second - SECONDS) return;
    if (!this.seconds.has(second)) this.seconds.set(second, new Map());
    const place = `${data.call}\n${data.target}`;
    if (this.recent.get(place) === null) return;
    const { cause, whose, level } = causeOf(data);
    const one = entry(this.seconds.get(second), cause);
    if (!one) return;
    one.whose.add(whose, 1);
    if (level) one.levels.add(level, 1);
    this.remember(place, { one, whose, level });
  }

  /** The call went on from there to another upstream: it was not refused after all. */
  wentOn({ call, before }) {
    const place = `${call}\n${before}`;
    const refusal = this.recent.get(place);
    this.remember(place, null);
    if (!refusal) return;
    refusal.one.whose.take(refusal.whose);
    refusal.one.levels.take(refusal.level);
    this.kept = null;
  }

  remember(place, refusal) {
    this.recent.set(place, refusal);
    if (this.recent.size > RECENT) this.recent.delete(this.recent.keys().next().value);
  }

  /** Those of the last minute that refused most first: what `causeOf` tells, `calls`, `whose`, `levels`. Looked at once a second. */
  causes() {
    if (this.kept) return this.kept;
    const all = new Map();
    for (const causes of this.seconds.values()) {
      for (const { whose, levels, ...cause } of causes.values()) {
        const sum = entry(all, cause);
        sum?.whose.addAll(whose);
        sum?.levels.addAll(levels);
      }
    }
    const causes = [...all.values()].map((one) => ({ ...one, calls: one.whose.calls })).filter(({ calls }) => calls > 0);
    return (this.kept = causes.sort((one, other) => other.calls - one.calls));
  }

  /** The levels that refused calls. */
  levels() {
    const levels = new Counts();
    for (const cause of this.causes()) levels.addAll(cause.levels);
    return levels;
  }
}
