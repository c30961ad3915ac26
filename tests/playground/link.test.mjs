// The connection's manners, on a socket and a clock that the test moves.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { load } from "./page.mjs";

const listeners = new Map();
globalThis.addEventListener = (name, listener) => listeners.set(name, listener);
globalThis.document = { addEventListener: () => {}, visibilityState: "visible" };

let sockets;

/** A browser's socket whose other end is the test. */
globalThis.WebSocket = class {
  constructor() {
    this.sent = [];
    this.closed = false;
    sockets.push(this);
  }

  send = (text) => this.sent.push(JSON.parse(text));
  close = () => (this.closed = true);
  last = () => this.sent.at(-1);
  says = (type, payload, id = "s") => this.onmessage?.({ data: JSON.stringify({ id, type, payload }) });
  acks = (fields = {}, frame = this.last()) => this.says("ack", { ack_id: frame.id, ok: true, ...fields });
};

const { Link, Lost, Refused } = await load("link.js");

// Promises are settled between two turns of the loop.
const settled = () => new Promise((resolve) => setImmediate(resolve));

beforeEach(() => {
  sockets = [];
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"] });
});

function made() {
  const told = { status: [], frames: [] };
  const link = new Link("ws://x", () => ({ worker_id: "w" }), {
    status: (status) => told.status.push(status),
    frame: (frame) => told.frames.push(frame.type),
    traffic: () => {},
  });
  link.open();
  return [link, told];
}

async function connected() {
  const [link, told] = made();
  sockets[0].onopen();
  sockets[0].acks({ server: { name: "dooers" } });
  await settled();
  return [link, told, sockets[0]];
}

const states = (told) => told.status.map((one) => one.state);

test("it says who it is, and is open when that is acknowledged", async () => {
  const [, told, socket] = await connected();
  assert.deepEqual([socket.sent[0].type, socket.sent[0].payload], ["connect", { worker_id: "w" }]);
  assert.deepEqual(states(told), ["connecting", "open"]);
});

test("answers find who asked, whatever else comes, and the rest is pushed", async () => {
  const [link, told, socket] = await connected();
  const threads = link.ask("thread.list");
  const removed = link.ask("thread.delete", { thread_id: "t" });
  socket.says("thread.deleted", { thread_id: "t" });
  socket.acks();
  socket.says("thread.list.result", { threads: [] });
  assert.deepEqual(await threads, { threads: [] });
  assert.equal((await removed).ok, true);
  assert.deepEqual(told.frames, ["thread.deleted"]);
});

test("a refusal is thrown, with its code and when to ask again", async () => {
  const [link, , socket] = await connected();
  const asked = link.ask("event.create");
  socket.acks({ ok: false, error: { code: "RATE_LIMITED", message: "slower", retry_after: 3 } });
  await assert.rejects(asked, (error) => error instanceof Refused && error.code === "RATE_LIMITED" && error.retryAfter === 3);
});

test("when the connection goes, what was asked is lost, and it comes back by itself", async () => {
  const [link, told, socket] = await connected();
  const asked = link.ask("event.create");
  socket.onclose({ code: 1006, reason: "" });
  await assert.rejects(asked, Lost);
  await assert.rejects(link.ask("ping"), Lost);
  mock.timers.tick(1000);
  assert.equal(sockets.length, 2);
  assert.deepEqual(states(told), ["connecting", "open", "waiting", "connecting"]);
});

test("it waits longer and longer, never for long, and begins anew once it was in", async () => {
  const [, told] = made();
  for (let tries = 0; tries < 12; tries += 1) {
    sockets.at(-1).onclose({ code: 1006, reason: "" });
    const { at } = told.status.at(-1);
    const wait = at - Date.now();
    assert.ok(wait <= 15_000 && wait >= Math.min(15_000, 300 * 2 ** tries) / 2, `${wait} ms after ${tries} tries`);
    mock.timers.tick(wait + 1);
    assert.equal(sockets.length, tries + 2);
  }
  sockets.at(-1).onopen();
  sockets.at(-1).acks();
  await settled();
  sockets.at(-1).onclose({ code: 1012, reason: "" });
  assert.ok(told.status.at(-1).at - Date.now() <= 300);
});

test("a server that says nothing is given up, also in the middle", async () => {
  const [, told, socket] = await connected();
  mock.timers.tick(15_000);
  assert.equal(socket.last().type, "ping");
  mock.timers.tick(20_000);
  await settled();
  assert.equal(socket.closed, true);
  assert.equal(told.status.at(-1).state, "waiting");
});

test("who is not let in does not knock for ever", async () => {
  const [link, told] = made();
  sockets[0].onopen();
  sockets[0].acks({ ok: false, error: { code: "UNAUTHENTICATED", message: "who are you" } });
  await settled();
  assert.equal(told.status.at(-1).state, "refused");
  mock.timers.tick(600_000);
  assert.equal(sockets.length, 1);
  link.open();
  assert.equal(sockets.length, 2);
  sockets[1].onclose({ code: 4403, reason: "not you" });
  assert.equal(told.status.at(-1).state, "refused");
  mock.timers.tick(600_000);
  assert.equal(sockets.length, 2);
});

test("an old socket that still speaks is not heard", async () => {
  const [link, told, socket] = await connected();
  const { onmessage } = socket;
  link.open();
  onmessage({ data: JSON.stringify({ id: "x", type: "thread.upsert", payload: {} }) });
  assert.deepEqual(told.frames, []);
});

test("a frame that is no JSON is the end of that connection, not of the page", async () => {
  const [, told, socket] = await connected();
  socket.onmessage({ data: "<html>" });
  assert.equal(told.status.at(-1).state, "waiting");
});

test("back online it does not wait for its turn", async () => {
  const [, , socket] = await connected();
  listeners.get("offline")();
  assert.equal(socket.closed, true);
  listeners.get("online")();
  assert.equal(sockets.length, 2);
});
