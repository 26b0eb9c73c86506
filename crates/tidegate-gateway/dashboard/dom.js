// How things get onto the page, and how numbers, times and names are written for people. Never HTML from text.

export const $ = (id) => document.getElementById(id);

/** Names are what callers say. Characters that reorder the text around them are shown, not obeyed. */
const legible = (text) => String(text).replace(/\p{Bidi_Control}/gu, (one) => `[U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);

/** An element: `h("td", { class: "number" }, 5, child)`. What is null or false is left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  const shown = children.flat().filter((child) => child !== null && child !== undefined && child !== false);
  element.append(...shown.map((child) => (child instanceof Node ? child : legible(child))));
  return element;
}

/** Sets a text only where it is another one: a screen reader is told of changes alone. */
export function say(element, text) {
  const shown = legible(text);
  if (element.textContent !== shown) element.textContent = shown;
}

/**
 * Makes the children of `parent` those of `items`, one each. What is there already is updated in place, so that focus and
 * selection stay. What has the focus is never moved, which would take it away: the others are put around it.
 */
export function keyed(parent, items, key, make, update) {
  const known = parent.keyed ?? (parent.keyed = new Map());
  const wanted = new Set();
  const nodes = items.map((item) => {
    const name = key(item);
    wanted.add(name);
    let node = known.get(name);
    if (!node) known.set(name, (node = make(item)));
    update(node, item);
    return node;
  });
  let hadFocus = false;
  for (const [name, node] of known) {
    if (!wanted.has(name)) {
      hadFocus ||= node.contains(document.activeElement);
      node.remove();
      known.delete(name);
    }
  }
  // What went with the focus in it leaves that to the region around it, not to the page's beginning.
  if (hadFocus) parent.closest("[tabindex]")?.focus({ preventScroll: true });
  // From the last to the first: each goes before the one that follows it.
  const held = nodes.find((node) => node.contains(document.activeElement));
  let next = null;
  for (const node of nodes.toReversed()) {
    if (node !== held && (node.parentNode !== parent || node.nextSibling !== next)) parent.insertBefore(node, next);
    next = node;
  }
}

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (number) => plain.format(number);
export const brief = (number) => (Math.abs(number) < 10000 ? plain.format(number) : short.format(number));
export const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;

export function rate(perSecond) {
  return perSecond >= 10 || perSecond === 0 ? perSecond.toFixed(0) : perSecond.toFixed(1);
}

/** Seconds as people say them. */
export function span(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds === 0) return "0 s";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${+(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
  return `${Math.round(seconds / 86400)} days`;
}

/** The same without what nobody needs to know so exactly. */
export const about = (seconds) => (seconds >= 90 && seconds < 5400 ? `${Math.round(seconds / 60)} min` : span(Math.round(seconds)));

export const clock = (at) => new Date(at).toLocaleTimeString("en-GB");
export const dated = (at) => `${new Date(at).toLocaleDateString("sv-SE")} ${clock(at)}`;

const DIMENSIONS = {
  requests_per_minute: "requests / min",
  tokens_per_minute: "tokens / min",
  requests_per_day: "requests / day",
  tokens_per_day: "tokens / day",
  images_per_minute: "images / min",
  max_in_flight: "in flight",
};
export const dimension = (name) => DIMENSIONS[name] ?? name.replaceAll("_", " ");
export const words = (name) => name.replaceAll("_", " ");

/** `team/acme/tokens_per_minute` taken apart. A key may have slashes of its own, and be empty. */
export function limitParts(path) {
  const parts = path.split("/");
  const last = DIMENSIONS[parts.at(-1)] ? parts.pop() : "";
  const [name, ...keys] = parts;
  return { name, key: keys.join("/"), dimension: last };
}

/** A limit's name as people say it: what upstreams told has none of its own. */
export const limitName = (name) => (name === "learned" ? "the upstream's limit" : name);

/** `team/acme/tokens_per_minute` as words. */
export function limitPath(path) {
  const { name, key, dimension: last } = limitParts(path);
  return [limitName(name), key ? `of ${key}` : null, last ? `(${dimension(last)})` : null].filter(Boolean).join(" ");
}

/** Whose a call is: the user's, where the tenant has no name but what the gateway calls it by. */
export const whose = ({ tenant = "", user }) => (user && (tenant === "" || tenant === "anonymous" || tenant.startsWith("caller-")) ? user : tenant);

const TONES = { closed: "good", open: "bad", half_open: "warn", forced_open: "bad", forced_closed: "info" };
export const tone = (state) => TONES[state] ?? "";

export function badge(text, kind) {
  return h("span", { class: "badge", "data-tone": kind || null }, text);
}

/** How much of a level's dimension is used up: from 0 to 1, beyond that it is debt. */
export const used = (one) => 1 - one.remaining / Math.max(1, Math.min(one.burst, one.limit));

/** How much of it is kept for higher priorities than the lowest that waits for it: from 0 to 1. */
export const keptShare = (one) => one.kept / Math.max(1, Math.min(one.burst, one.limit));

/** A bar that says how far something is used up. `used` from 0 to 1, beyond that it is debt; `kept` is hatched at its end. */
export function meter() {
  return h("div", { class: "meter", role: "meter", "aria-valuemin": 0, "aria-valuemax": 100 }, h("i"), h("em"));
}

export function setMeter(element, used, label, kept = 0) {
  const percent = Math.max(0, Math.min(100, used * 100));
  element.firstChild.style.width = `${percent}%`;
  element.lastChild.style.width = `${Math.max(0, Math.min(100, kept * 100))}%`;
  element.dataset.level = used >= 0.95 ? "full" : used >= 0.75 ? "mid" : "low";
  element.setAttribute("aria-valuenow", Math.round(percent));
  element.setAttribute("aria-label", label);
}

export function toast(text, isBad = false) {
  const note = h("p", { class: isBad ? "bad" : null }, text);
  $("toasts").append(note);
  setTimeout(() => note.remove(), isBad ? 9000 : 5000);
}
