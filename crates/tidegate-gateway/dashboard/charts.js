// What the last minutes were like: rates and quantiles from the series that Prometheus reads too, drawn with uPlot.

import { h, rate, span, brief } from "/dashboard/dom.js";

/** Seconds; of a page that was just opened fewer. */
const SHOWN_FOR = 300;
const SHOWN_AT_LEAST = 60;
/** Quantiles are taken over so many samples. */
const WINDOW = 8;

/** How the counters stand: sums over all labels but those that matter here. What the last minute was is told by the gateway itself. */
export function sums(text, at) {
  const sample = { at, attempts: 0, retries: 0, tooMany: 0, firstByte: new Map(), overhead: new Map() };
  for (const line of text.split("\n")) {
    if (!line.startsWith("tidegate_")) continue;
    const value = Number(line.slice(line.lastIndexOf(" ") + 1));
    const name = line.slice(9, line.search(/[{ ]/));
    if (name === "attempts_total") sample.attempts += value;
    else if (name === "retries_total" && line.includes('result="retried"')) sample.retries += value;
    else if (name === "upstream_429_total") sample.tooMany += value;
    else if (name === "time_to_first_byte_seconds_bucket") add(sample.firstByte, upper(line), value);
    else if (name === "overhead_seconds_bucket") add(sample.overhead, upper(line), value);
  }
  return sample;
}

const label = (line, name) => line.match(`[{,]${name}="([^"]*)"`)?.[1] ?? "";
const upper = (line) => (label(line, "le") === "+Inf" ? Infinity : Number(label(line, "le")));
const add = (counts, name, value) => counts.set(name, (counts.get(name) ?? 0) + value);

/** As Prometheus' `histogram_quantile` has it, of what came between two samples. `null`: nothing came. */
export function quantile(share, before, after) {
  const buckets = [...after].map(([upper, value]) => [upper, value - (before.get(upper) ?? 0)]).sort((a, b) => a[0] - b[0]);
  const all = buckets.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  let [lower, below] = [0, 0];
  for (const [upper, value] of buckets) {
    if (value >= share * all) {
      if (upper === Infinity) return lower;
      return lower + ((upper - lower) * (share * all - below)) / (value - below || 1);
    }
    [lower, below] = [upper, value];
  }
  return lower;
}

/** Whole numbers: half a call says nothing. */
const STEPS = [1, 2, 5].flatMap((first) => [0, 1, 2, 3, 4, 5, 6].map((zeros) => first * 10 ** zeros)).sort((a, b) => a - b);

/** The powers of ten from below `min` to above `max`. */
function powers(_, __, min, max) {
  const splits = [];
  for (let power = Math.floor(Math.log10(min)); power <= Math.ceil(Math.log10(max)); power++) splits.push(10 ** power);
  return splits;
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** One chart: up to three lines over the last five minutes. */
class Chart {
  constructor(figure, lines, { label, show, log = false }) {
    Object.assign(this, { figure, lines, label, show, log, plot: null });
    this.box = figure.querySelector(".plot");
    this.data = [[], ...lines.map(() => [])];
    this.values = lines.map((name) => {
      const value = h("b", {}, "–");
      figure.querySelector(".legend").append(h("span", {}, h("i"), `${name} `, value));
      return value;
    });
    new ResizeObserver(() => this.plot?.setSize({ width: this.box.clientWidth, height: this.box.clientHeight })).observe(this.box);
  }

  push(at, values) {
    this.data[0].push(at);
    values.forEach((value, line) => this.data[line + 1].push(value));
    while (this.data[0][0] < at - SHOWN_FOR) this.data.forEach((line) => line.shift());
    const shown = values.map((value) => (value === null ? "–" : this.show(value)));
    this.values.forEach((element, line) => (element.textContent = shown[line]));
    this.box.setAttribute("aria-label", `${this.label}: ${this.lines.map((name, line) => `${name} ${shown[line]}`).join(", ")}`);
    this.draw();
  }

  draw() {
    if (!this.plot) this.make();
    this.plot.setData(this.data, false);
    const now = this.data[0].at(-1) ?? Date.now() / 1000;
    const from = Math.max(now - SHOWN_FOR, Math.min(this.data[0][0] ?? now, now - SHOWN_AT_LEAST));
    this.plot.setScale("x", { min: from, max: now });
    if (!this.log) this.plot.setScale("y", { min: 0, max: Math.max(1, ...this.data.slice(1).flat()) * 1.08 });
  }

  make() {
    const axis = { stroke: style("--faint"), grid: { stroke: style("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const time = (_, values) => {
      const isShort = values.at(-1) - values[0] < 150;
      const said = { hour: "2-digit", minute: "2-digit", ...(isShort ? { second: "2-digit" } : {}) };
      return values.map((value) => new Date(value * 1000).toLocaleTimeString("en-GB", said));
    };
    this.plot = new uPlot(
      {
        width: this.box.clientWidth,
        height: this.box.clientHeight,
        legend: { show: false },
        padding: [8, 26, 0, 0],
        cursor: { y: false, points: { size: 6 } },
        scales: { x: { time: true, auto: false }, y: this.log ? { distr: 3, auto: true, range: (_, min, max) => (min > 0 ? [10 ** Math.floor(Math.log10(min)), 10 ** Math.ceil(Math.log10(max * 1.01))] : [0.0001, 1]) } : { auto: false } },
        axes: [
          { ...axis, values: time, space: 70, size: 26 },
          { ...axis, size: 52, space: 30, ...(this.log ? { splits: powers } : { incrs: STEPS }), values: (_, values) => values.map((value) => (value === null ? "" : this.show(value))) },
        ],
        series: [{}, ...this.lines.map((_, line) => ({ stroke: style(`--line-${line + 1}`), width: 1.75, points: { show: false }, spanGaps: false }))],
      },
      this.data,
      this.box,
    );
  }

  /** Colours are other ones. */
  repaint() {
    this.plot?.destroy();
    this.plot = null;
    if (this.data[0].length) this.draw();
  }
}

export class Charts {
  constructor(figures) {
    this.samples = [];
    this.attempts = new Chart(figures.attempts, ["attempts", "retries", "429s"], { label: "Per second", show: (value) => `${rate(value)}/s` });
    this.queue = new Chart(figures.queue, ["high", "normal", "low"], { label: "Calls waiting, by priority", show: brief });
    this.latency = new Chart(figures.latency, ["first byte p95", "overhead p99"], { label: "Over the last seconds", show: span, log: true });
  }

  /** The counters as they stand now; the quantiles of at most the last minute, from when the page was opened, for the tiles. */
  sample(sample) {
    const last = this.samples.at(-1);
    // A gateway that was started again counts from nothing.
    if (last && sample.attempts < last.attempts) this.samples = [];
    this.samples.push(sample);
    if (this.samples.length > SHOWN_FOR) this.samples.shift();
    if (!last || last.at >= sample.at || !this.samples.includes(last)) return null;
    const seconds = sample.at - last.at;
    const per = (name) => Math.max(0, sample[name] - last[name]) / seconds;
    this.attempts.push(sample.at, [per("attempts"), per("retries"), per("tooMany")]);
    const earlier = this.samples.at(-Math.min(WINDOW, this.samples.length));
    const of = (share, name) => quantile(share, earlier[name], sample[name]);
    this.latency.push(sample.at, [of(0.95, "firstByte"), of(0.99, "overhead")]);
    const minute = this.samples.find((one) => one.at >= sample.at - 61) ?? last;
    return {
      seconds: sample.at - minute.at,
      firstByte: quantile(0.95, minute.firstByte, sample.firstByte),
      overhead: quantile(0.99, minute.overhead, sample.overhead),
    };
  }

  waiting(at, byClass) {
    this.queue.push(at, [byClass.high ?? 0, byClass.normal ?? 0, byClass.low ?? 0]);
  }

  repaint() {
    for (const chart of [this.attempts, this.queue, this.latency]) chart.repaint();
  }
}
