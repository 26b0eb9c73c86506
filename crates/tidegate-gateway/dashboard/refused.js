// Which limits refused calls within the last minute, and whose: told by the events of refusals, counted by second and bounded.

import { limitParts } from "/dashboard/dom.js";

const SECONDS = 60;
/** Of one second's limits, and of whose calls one of them refused, so many are told apart. */
const APART = 200;
const REST = "others";

/** A map's entry, made where it is not there; beyond the bound the entry of all the rest. */
function entry(map, name, make) {
  const at = map.has(name) || map.size < APART ? name : REST;
  let value = map.get(at);
  if (value === undefined) map.set(at, (value = make()));
  return value;
}

const add = (counts, name, calls) => counts.set(name, (counts.get(name) ?? 0) + calls);

export class Refused {
  constructor() {
    this.seconds = new Map();
    this.kept = { at: 0, limits: [] };
  }

  /** One refusal, as its event tells it. */
  take(data) {
    if (!data.limit) return;
    const second = Math.floor(Date.parse(data.at) / 1000);
    let limits = this.seconds.get(second);
    if (!limits) this.seconds.set(second, (limits = new Map()));
    const { name, key, dimension } = limitParts(data.limit);
    const limit = entry(limits, `${name}\n${dimension}\n${data.why}`, () => ({ name, dimension, why: data.why, calls: 0, whose: new Map(), levels: new Map() }));
    limit.calls += 1;
    const whose = key || data.user || data.tenant || "callers without a name";
    entry(limit.whose, whose, () => 0);
    add(limit.whose, limit.whose.has(whose) ? whose : REST, 1);
    if (limit.levels.size < APART) add(limit.levels, `${name}\n${key}`, 1);
  }

  /** `[{ name, dimension, why, calls, whose: [name, calls][] }]`, those that refused most first; looked at anew twice a second at most. */
  limits(now = Date.now()) {
    if (now - this.kept.at < 500) return this.kept.limits;
    const from = Math.floor(now / 1000) - SECONDS;
    const all = new Map();
    for (const [second, limits] of this.seconds) {
      if (second < from) {
        this.seconds.delete(second);
        continue;
      }
      for (const [name, one] of limits) {
        const sum = entry(all, name, () => ({ ...one, calls: 0, whose: new Map(), levels: new Map() }));
        sum.calls += one.calls;
        for (const [whose, calls] of one.whose) add(sum.whose, whose, calls);
        for (const [level, calls] of one.levels) add(sum.levels, level, calls);
      }
    }
    const most = (one, other) => other[1] - one[1];
    const limits = [...all.values()].sort((one, other) => other.calls - one.calls).map((one) => ({ ...one, whose: [...one.whose].sort(most) }));
    this.kept = { at: now, limits };
    return limits;
  }

  /** How many calls each level refused: by its limit's name and its key, with a line break between them. */
  levels() {
    const levels = new Map();
    for (const limit of this.limits()) for (const [level, calls] of limit.levels) add(levels, level, calls);
    return levels;
  }
}
