// What the page knows, after whatever frames in whatever order.

import assert from "node:assert/strict";
import { test } from "node:test";

import { answer, chance, event, load, thread } from "./page.mjs";

const model = await load("model.js");
const { asked, isBusy, newState, shownThreads, take, takeOlder, takeSnapshot, takeThreads } = model;

const T = thread("t");
const opened = (events = [], more = false, runs = []) => {
  const state = newState();
  state.open = "t";
  takeSnapshot(state, { thread: T, events, runs, has_more: more });
  return [state, () => state.talks.get("t")];
};
const push = (state, type, payload) => take(state, { type, payload });
const append = (state, ...events) => push(state, "event.append", { thread_id: "t", events });
const delta = (state, id, text, run) => push(state, "event.delta", { thread_id: "t", event_id: id, text, run_id: run });
const run = (state, id, status) => push(state, "run.upsert", { run: { id, thread_id: "t", status } });
const numbers = (talk) => talk.events.map((one) => one.seq);

test("unknown frames are left alone, also those that are called like a method of every object", () => {
  const [state] = opened();
  const before = JSON.stringify(state);
  for (const type of ["toString", "__proto__", "constructor", "something.new"]) push(state, type, { thread_id: "t" });
  assert.equal(JSON.stringify(state), before);
});

test("events stand in order and once, however they come", () => {
  const [state, talk] = opened([event(3)]);
  const fourth = event(4);
  append(state, fourth);
  append(state, fourth);
  append(state, event(6), event(5));
  assert.deepEqual(numbers(talk()), [3, 4, 5, 6]);
});

test("a snapshot after an event continues; one that does not reach it takes the place of all", () => {
  const [state, talk] = opened([event(1), event(2)]);
  takeSnapshot(state, { thread: T, events: [event(3)], runs: [], has_more: false }, "known");
  assert.deepEqual(numbers(talk()), [1, 2, 3]);
  takeSnapshot(state, { thread: T, events: [event(9), event(10)], runs: [], has_more: true }, "unknown to the worker");
  assert.deepEqual(numbers(talk()), [9, 10]);
  assert.equal(talk().older, true);
});

test("what was asked for after an event, of a talk that was forgotten meanwhile, can be paged up", () => {
  const state = newState();
  takeSnapshot(state, { thread: T, events: [event(8)], runs: [], has_more: false }, "gone");
  assert.equal(state.talks.get("t").older, true);
});

test("older pages come above, and the last one says so", () => {
  const [state, talk] = opened([event(5), event(6)], true);
  const newest = talk().events[0];
  takeOlder(state, "t", { events: [event(3), event(4)], has_more: true });
  assert.deepEqual(numbers(talk()), [3, 4, 5, 6]);
  assert.equal(talk().events[2], newest);
  takeOlder(state, "t", { events: [event(1), event(2)], has_more: false });
  assert.deepEqual([numbers(talk()), talk().older], [[1, 2, 3, 4, 5, 6], false]);
  takeOlder(state, "not there", { events: [event(1)], has_more: false });
});

test("pieces grow into a text, and the final event takes their place", () => {
  const [state, talk] = opened([event(1)]);
  delta(state, "g", "Hel");
  delta(state, "g", "lo");
  assert.equal(talk().growing.get("g").text, "Hello");
  append(state, answer(2, { id: "g", content: [{ type: "text", text: "Hello!" }] }));
  assert.equal(talk().growing.size, 0);
  delta(state, "g", "too late");
  assert.equal(talk().growing.size, 0);
});

test("a snapshot has what is being written, with its text so far, and the pieces go on from there", () => {
  const writing = { ...answer(undefined, { id: "g" }), streaming: true, content: [{ type: "text", text: "Hel" }] };
  const [state, talk] = opened([event(1), writing]);
  delta(state, "g", "lo");
  assert.equal(talk().growing.get("g").text, "Hello");
  assert.deepEqual(numbers(talk()), [1]);
  takeSnapshot(state, { thread: T, events: [], runs: [], has_more: false }, talk().events[0].id);
  assert.equal(talk().growing.size, 0);
});

test("the end of a run takes what it was writing with it, and nothing else", () => {
  const [state, talk] = opened([event(1)]);
  run(state, "r1", "running");
  delta(state, "a", "one", "r1");
  delta(state, "b", "two", "r2");
  run(state, "r1", "canceled");
  assert.deepEqual([...talk().growing.keys()], ["b"]);
});

test("busy is: a run, a text that grows, or a message that waits", () => {
  const [state, talk] = opened();
  assert.equal(isBusy(talk()), false);
  assert.equal(isBusy(undefined), false);
  const message = event(1);
  append(state, message);
  assert.equal(isBusy(talk()), true);
  run(state, message.id, "running");
  assert.equal(isBusy(talk()), true);
  run(state, message.id, "succeeded");
  assert.equal(isBusy(talk()), false);
});

test("a message that is told again does not wait again", () => {
  const message = event(1);
  const [state, talk] = opened([message, answer(2)]);
  append(state, message);
  assert.equal(isBusy(talk()), false);
});

test("old messages of a snapshot, answered by nothing, wait for nothing", () => {
  const [, talk] = opened([event(1), event(2), answer(3)]);
  assert.equal(isBusy(talk()), false);
});

test("messages that wait in a queue wait until each of them has its turn", () => {
  const [state, talk] = opened();
  const [one, two] = [event(1), event(2)];
  append(state, one);
  append(state, two);
  run(state, one.id, "running");
  append(state, answer(3, { run_id: one.id }));
  run(state, one.id, "succeeded");
  run(state, two.id, "canceled");
  assert.equal(isBusy(talk()), false);
});

test("our message is taken off what is unsent when it is seen, and the thread that it begins is followed", () => {
  const state = newState();
  state.unsent = [{ key: "k", thread: null }, { key: "l", thread: null }];
  append(state, event(1, { client_event_id: "k" }));
  assert.deepEqual(state.unsent, [{ key: "l", thread: null }]);
  assert.deepEqual(numbers(state.talks.get("t")), [1]);
});

test("events of a thread that is not followed change nothing", () => {
  const state = newState();
  append(state, event(1));
  delta(state, "g", "x");
  run(state, "r", "running");
  assert.equal(state.talks.size, 0);
});

test("a deleted thread is gone from everywhere", () => {
  const [state] = opened([event(1)]);
  state.unsent = [{ key: "k", thread: "t" }, { key: "l", thread: "other" }];
  push(state, "thread.deleted", { thread_id: "t" });
  assert.deepEqual([state.open, state.talks.size, state.threads.size, state.unsent.length], [null, 0, 0, 1]);
});

test("a map that changed is another map", () => {
  const [state, talk] = opened();
  const [threads, runs] = [state.threads, talk().runs];
  push(state, "thread.upsert", { thread: thread("u") });
  run(state, "r", "running");
  assert.notEqual(state.threads, threads);
  assert.notEqual(talk().runs, runs);
});

test("threads are listed newest first, no further down than was paged, and those that match", () => {
  const state = newState();
  const at = (hour) => `2026-01-01T${String(hour).padStart(2, "0")}:00:00Z`;
  takeThreads(state, state.listing, {
    threads: [thread("Beta", { last_event_at: at(9) }), thread("Älpha", { last_event_at: at(8) })],
    cursor: "more",
  });
  push(state, "thread.upsert", { thread: thread("old", { last_event_at: at(1) }) });
  push(state, "thread.upsert", { thread: thread("new", { last_event_at: at(10), title: undefined }) });
  assert.deepEqual(shownThreads(state).map((one) => one.id), ["new", "Beta", "Älpha"]);
  state.listing.query = "äLP";
  assert.deepEqual(shownThreads(state).map((one) => one.id), ["Älpha"]);
  state.listing.query = "";
  takeThreads(state, state.listing, { threads: [] });
  assert.deepEqual(shownThreads(state).map((one) => one.id), ["new", "Beta", "Älpha", "old"]);
});

test("an answer answers the message whose run it is of, else the last one before it", () => {
  const [one, two] = [event(1), event(2)];
  const mine = answer(3, { run_id: one.id });
  const other = answer(4);
  const [, talk] = opened([one, two, mine, other, event(5)]);
  assert.equal(asked(talk(), mine), one);
  assert.equal(asked(talk(), other), two);
});

// ---------------------------------------------------------------- whatever happens

const FIRST = 5; // events of a snapshot

/** A worker as far as a reader of one thread sees it; `tell` is called with what is pushed while somebody listens. */
function worker(random) {
  const stored = [];
  let growing = null;
  let tell = () => {};
  const store = (made) => {
    stored.push(made);
    tell("event.append", { thread_id: "t", events: [made] });
  };
  const acts = [
    () => store(event(stored.length + 1)),
    () => store(answer(stored.length + 1)),
    () => {
      growing ??= { id: `g${stored.length}-${random()}`, text: "" };
      growing.text += "abc"[Math.floor(random() * 3)];
      tell("event.delta", { thread_id: "t", event_id: growing.id, text: growing.text.at(-1) });
    },
    () => {
      if (growing === null) return;
      const { id, text } = growing;
      growing = null;
      store(answer(stored.length + 1, { id, content: [{ type: "text", text }] }));
    },
    () => stored.length > 0 && tell("event.append", { thread_id: "t", events: [stored[Math.floor(random() * stored.length)]] }),
  ];
  return {
    stored,
    growing: () => growing,
    act: () => acts[Math.floor(random() * acts.length)](),
    listen: (listener) => (tell = listener),
    snapshot(after) {
      const at = stored.findIndex((one) => one.id === after);
      const events = at < 0 ? stored.slice(-FIRST) : stored.slice(at + 1);
      const now = growing === null ? [] : [{ ...answer(undefined, { id: growing.id }), streaming: true, content: [{ type: "text", text: growing.text }] }];
      return { thread: T, events: [...events, ...now], runs: [], has_more: at < 0 && stored.length > FIRST };
    },
    before(id) {
      const at = stored.findIndex((one) => one.id === id);
      return { events: stored.slice(Math.max(0, at - 4), at), has_more: at > 4 };
    },
  };
}

test("whatever happens, and however often the connection goes, the page shows what the worker has", () => {
  for (let seed = 0; seed < 300; seed += 1) {
    const random = chance(seed);
    const there = worker(random);
    const state = newState();
    let online = false;
    const talk = () => state.talks.get("t");
    const connect = () => {
      const after = random() < 0.1 ? "an id of another database" : (talk()?.events.at(-1)?.id ?? null);
      takeSnapshot(state, there.snapshot(after), after);
      there.listen((type, payload) => push(state, type, structuredClone(payload)));
      online = true;
    };
    const check = () => {
      const shown = talk().events.map((one) => one.id);
      assert.deepEqual(shown, there.stored.slice(there.stored.length - shown.length).map((one) => one.id), `seed ${seed}`);
      assert.deepEqual([...talk().growing.values()].map((one) => [one.id, one.text]), there.growing() === null ? [] : [[there.growing().id, there.growing().text]], `seed ${seed}`);
      assert.ok(talk().older || shown.length === there.stored.length, `seed ${seed}: what is missing above can be asked for`);
    };
    connect();
    for (let step = 0; step < 120; step += 1) {
      const what = random();
      if (what < 0.08) {
        online = false;
        there.listen(() => {});
      } else if (what < 0.25 && !online) connect();
      else if (what < 0.3 && online && talk().older) takeOlder(state, "t", structuredClone(there.before(talk().events[0].id)));
      else there.act();
      if (online) check();
    }
    connect();
    while (talk().older) takeOlder(state, "t", there.before(talk().events[0].id));
    check();
    assert.equal(talk().events.length, there.stored.length);
  }
});
