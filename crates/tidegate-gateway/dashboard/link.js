// How the page talks to the gateway: with a token that is in no URL, and that this tab forgets when it is closed.

const KEPT = "tidegate-admin-token";
/** Something comes each second; after so long without anything the connection is taken for dead. */
const DEAD_AFTER = 10_000;
const AGAIN_AFTER = [500, 1000, 2000, 5000];

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEPT),
  keep: (text) => sessionStorage.setItem(KEPT, text),
  forget: () => sessionStorage.removeItem(KEPT),
};

/** What the token allows: `operator` or `viewer`; empty until something has been answered. `told` hears of each change. */
export const role = { now: "", told: () => {} };

async function request(method, path, { body, headers, signal } = {}) {
  const response = await fetch(path, {
    method,
    signal,
    cache: "no-store",
    credentials: "omit",
    headers: {
      authorization: `Bearer ${token.get() ?? ""}`,
      ...(body === undefined ? {} : { "content-type": "application/json" }),
      ...headers,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const now = response.headers.get("x-tidegate-role");
  if (now && now !== role.now) role.told((role.now = now));
  return response;
}

async function refusal(response) {
  const told = await response.json().catch(() => null);
  const message = told?.error?.message?.replace(/^tidegate: /, "") ?? `the gateway answered ${response.status}`;
  return new Refused(response.status, message);
}

/** One question or order; its JSON answer. Throws what the gateway says against it. */
export async function ask(method, path, body) {
  let response;
  try {
    response = await request(method, path, { body });
  } catch {
    throw new Refused(0, "the gateway cannot be reached; is it running?");
  }
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/** What Prometheus reads; open to anybody. */
export async function series() {
  const response = await fetch("/metrics", { cache: "no-store", credentials: "omit" });
  return response.ok ? response.text() : "";
}

/** What happens, for as long as the page is open: `told(event, data)`, `state("live" | "lost", why)`, `refused(error)`. */
export class Line {
  constructor(told, state, refused) {
    Object.assign(this, { told, state, refused, lastId: "", failures: 0, stop: null });
  }

  open() {
    this.close();
    const stop = (this.stop = new AbortController());
    this.run(stop);
  }

  close() {
    this.stop?.abort();
    this.stop = null;
  }

  async run(stop) {
    while (!stop.signal.aborted) {
      const dead = new AbortController();
      let timer = 0;
      const alive = () => {
        clearTimeout(timer);
        timer = setTimeout(() => dead.abort(), DEAD_AFTER);
      };
      let why = "the gateway cannot be reached";
      try {
        alive();
        const headers = this.lastId ? { "last-event-id": this.lastId } : {};
        const signal = AbortSignal.any([stop.signal, dead.signal]);
        const response = await request("GET", "/admin/v1/events", { headers, signal });
        if (!response.ok) {
          const error = await refusal(response);
          if (error.status === 401 || error.status === 403) {
            this.refused(error);
            return;
          }
          why = error.message;
        } else {
          this.failures = 0;
          this.state("live", "");
          await this.read(response.body.getReader(), alive);
        }
      } catch {
        // Told below, unless it is what was wanted.
      } finally {
        clearTimeout(timer);
      }
      if (stop.signal.aborted) return;
      this.state("lost", why);
      const pause = AGAIN_AFTER[Math.min(this.failures++, AGAIN_AFTER.length - 1)];
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  async read(reader, alive) {
    const decoder = new TextDecoder();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      text += decoder.decode(value, { stream: true });
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        this.take(text.slice(0, end));
        text = text.slice(end + 2);
      }
    }
  }

  take(block) {
    let event = "";
    let data = "";
    for (const line of block.split("\n")) {
      if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
      else if (line.startsWith("id: ")) this.lastId = line.slice(4);
    }
    if (event) this.told(event, JSON.parse(data));
  }
}
