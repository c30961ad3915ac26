// The connection: frames out, frames in, and back again when it breaks. Knows the protocol's manners, nothing of what frames mean
// or of the page.

// Frames that are answered by a frame of their own; all others by an `ack`. A refusal is always an `ack`.
const ANSWERS = {
  "thread.list": "thread.list.result",
  "thread.subscribe": "thread.snapshot",
  "event.list": "event.list.result",
  "settings.public_schema": "settings.public_schema.result",
  feedback: "feedback.ack",
  ping: "pong",
};

// Milliseconds: until an answer is overdue, between signs of life, the longest wait between two attempts.
const WITHIN = 20_000;
const BEAT = 15_000;
const LONGEST = 15_000;
// Close codes after which trying again cannot help before somebody changes something.
const FINAL = new Set([4401, 4403]);

/** What the worker refused: its code, its words, and for RATE_LIMITED in how many seconds to ask again. */
export class Refused extends Error {
  constructor({ code = "SERVER_ERROR", message = "refused", retry_after: retryAfter = null } = {}) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The connection went away before the answer came: whether it was done, nobody knows. */
export class Lost extends Error {}

/**
 * One worker, for as long as the page is open: reconnects by itself until `close`.
 *
 * `hello()` gives the payload of `connect`, each time anew. `on.status({state, ...})` tells `connecting`, `open` (with `server`),
 * `waiting` (with `at`, when it is tried again, and `why`), `refused` (with `error`); `on.frame(frame)` tells what was pushed, and
 * `on.traffic(direction, text, frame)` everything.
 */
export class Link {
  constructor(url, hello, on) {
    this.url = url;
    this.hello = hello;
    this.on = on;
    this.pending = new Map(); // frame id -> {type, resolve, reject, timer}
    this.socket = null;
    this.tries = 0;
    this.sent = 0;
    this.timer = null;
    this.closed = false;
    this.ready = false;
    addEventListener("online", () => this.hurry());
    addEventListener("offline", () => this.fail("the network is gone"));
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.hurry());
  }

  /** Connect, or connect anew as whoever `hello` says now. */
  open() {
    this.drop("connecting anew");
    this.closed = false;
    this.tries = 0;
    this.connect();
  }

  /** Connect at once if it is being waited for. */
  hurry() {
    if (!this.closed && this.socket === null) this.connect();
  }

  close() {
    this.closed = true;
    this.drop("closed");
  }

  /** Send a frame; its answer's payload. Throws Refused, or Lost where nobody knows. */
  ask(type, payload = {}) {
    if (!this.ready) return Promise.reject(new Lost("not connected"));
    return this.exchange(type, payload);
  }

  // ---------------------------------------------------------------- within

  connect() {
    clearTimeout(this.timer);
    this.on.status({ state: "connecting", tries: this.tries });
    const socket = new WebSocket(this.url);
    this.socket = socket;
    // A server that takes the connection and never says a word is none.
    this.timer = setTimeout(() => this.fail("no answer"), WITHIN);
    socket.onopen = () => this.greet();
    socket.onmessage = (message) => this.socket === socket && this.take(message.data);
    socket.onclose = (event) => this.socket === socket && this.ended(event);
  }

  async greet() {
    let answer;
    try {
      answer = await this.exchange("connect", this.hello());
    } catch (error) {
      if (error instanceof Refused && ["UNAUTHENTICATED", "FORBIDDEN", "INVALID_FRAME", "INVALID_VALUE"].includes(error.code)) {
        this.closed = true;
        this.drop(error.message);
        this.on.status({ state: "refused", error });
      }
      return; // anything else: the close that follows says it
    }
    clearTimeout(this.timer);
    this.tries = 0;
    this.ready = true;
    this.timer = setInterval(() => this.ask("ping").catch(() => {}), BEAT);
    this.on.status({ state: "open", server: answer.server ?? {} });
  }

  exchange(type, payload) {
    const id = `p${++this.sent}`;
    const frame = { id, type, payload };
    const text = JSON.stringify(frame);
    return new Promise((resolve, reject) => {
      // Silence means that the connection is dead, whatever the browser thinks: all of it is made anew.
      const timer = setTimeout(() => this.fail("no answer"), WITHIN);
      this.pending.set(id, { answer: ANSWERS[type], resolve, reject, timer });
      this.socket.send(text);
      this.on.traffic("out", text, frame);
    });
  }

  take(text) {
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      return this.fail("the server does not speak this protocol");
    }
    this.on.traffic("in", text, frame);
    const { type, payload } = frame;
    const id =
      type === "ack" ? payload.ack_id : [...this.pending.keys()].find((one) => this.pending.get(one).answer === type);
    const asked = this.pending.get(id);
    if (asked === undefined) {
      if (type !== "ack") this.on.frame(frame);
      return undefined;
    }
    this.pending.delete(id);
    clearTimeout(asked.timer);
    if (payload.ok === false) asked.reject(new Refused(payload.error));
    else asked.resolve(payload);
    return undefined;
  }

  ended({ code, reason }) {
    if (FINAL.has(code)) {
      this.closed = true;
      this.drop(reason);
      this.on.status({ state: "refused", error: new Refused({ code: String(code), message: reason || "not let in" }) });
    } else this.fail(reason || (code === 1006 ? "the connection broke" : `closed with ${code}`));
  }

  fail(why) {
    if (this.closed || (this.socket === null && this.timer !== null)) return;
    this.drop(why);
    // Half of it by chance, so that a thousand pages do not come back in the same instant.
    const wait = Math.min(LONGEST, 300 * 2 ** Math.min(this.tries, 10)) * (0.5 + Math.random() / 2);
    this.tries += 1;
    this.timer = setTimeout(() => this.connect(), wait);
    this.on.status({ state: "waiting", why, at: Date.now() + wait, tries: this.tries });
  }

  drop(why) {
    clearTimeout(this.timer);
    this.timer = null;
    this.ready = false;
    const socket = this.socket;
    this.socket = null;
    if (socket !== null) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
    const pending = [...this.pending.values()];
    this.pending.clear();
    for (const { reject, timer } of pending) {
      clearTimeout(timer);
      reject(new Lost(why));
    }
  }
}
