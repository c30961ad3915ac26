// What is shown of a talk.

import assert from "node:assert/strict";
import { test } from "node:test";

import { answer, event, load } from "./page.mjs";

const { newTalk } = await load("model.js");
const { seconds, transcript } = await load("transcript.js");

const talkOf = (events, runs = []) => ({ ...newTalk(), events, runs: new Map(runs.map((run) => [run.id, run])) });
const items = (talk) => transcript(talk).flatMap((chunk) => chunk.items);
const call = (seq, id, fields = {}) => answer(seq, { type: "tool.call", data: { id, name: "clock" }, run_id: "r", ...fields });
const result = (seq, id, fields = {}) => answer(seq, { type: "tool.result", data: { id, name: "clock", result: 1 }, run_id: "r", ...fields });

test("a call and its result are one card, the same id in another run is another", () => {
  const talk = talkOf([call(1, "c"), result(2, "c"), call(3, "c", { run_id: "s" }), result(4, "c", { run_id: "s" })]);
  assert.deepEqual(items(talk).map((item) => [item.event.seq, item.result.seq]), [[1, 2], [3, 4]]);
});

test("results come in whatever order, and one without a call is a card of its own", () => {
  const talk = talkOf([call(1, "a"), call(2, "b"), result(3, "b"), result(4, "a"), result(5, "z")]);
  assert.deepEqual(items(talk).map((item) => [item.event.seq, item.result?.seq]), [[1, 4], [2, 3], [5, undefined]]);
});

test("a call runs as long as its run does", () => {
  const talk = talkOf([call(1, "a")], [{ id: "r", status: "running" }]);
  assert.equal(items(talk)[0].running, true);
  talk.runs = new Map([["r", { id: "r", status: "failed" }]]);
  assert.equal(items(talk)[0].running, false);
});

test("the end of a run is under the last thing it said, or under its message if it said nothing", () => {
  const [question, other] = [event(1, { id: "q" }), event(4, { id: "o" })];
  const ends = [{ id: "q", status: "succeeded" }, { id: "o", status: "canceled" }, { id: "unseen", status: "failed" }];
  const talk = talkOf([question, answer(2, { run_id: "q" }), answer(3, { run_id: "q" }), other], ends);
  assert.deepEqual(items(talk).map((item) => item.ended?.id), [undefined, undefined, "q", "o"]);
});

test("a name is shown where somebody begins to speak", () => {
  const talk = talkOf([event(1, { user_id: "a" }), event(2, { user_id: "b" }), answer(3), call(4, "c"), answer(5), event(6)]);
  assert.deepEqual(items(talk).map((item) => item.head), [true, true, true, false, false, true]);
});

test("only the last item is the last", () => {
  const talk = talkOf([event(1), answer(2)]);
  assert.deepEqual(items(talk).map((item) => item.last), [false, true]);
});

test("what did not change is the same object, also when a page comes in above", () => {
  const events = Array.from({ length: 100 }, (_, at) => event(at + 101, { user_id: "a" }));
  const talk = talkOf(events);
  const before = transcript(talk);
  assert.equal(transcript(talk)[1], before[1]);
  talk.events = [...Array.from({ length: 50 }, (_, at) => event(at + 51, { user_id: "a" })), ...events];
  const after = transcript(talk);
  assert.deepEqual(before.slice(1).map((chunk) => after.includes(chunk)), before.slice(1).map(() => true));
  talk.events = [...talk.events, answer(201)];
  const grown = transcript(talk);
  assert.equal(after.slice(0, -1).every((chunk) => grown.includes(chunk)), true);
});

test("what is written is drawn in the place where it will be when it is stored", () => {
  for (const length of [0, 1, 14, 15, 16, 17]) {
    const events = Array.from({ length }, (_, at) => event(at + 1));
    const talk = talkOf(events);
    talk.growing.set("g", { id: "g", text: "so far" });
    const place = transcript(talk).find((chunk) => chunk.items.some((item) => item.key === "g")).key;
    talk.growing.clear();
    talk.events = [...events, answer(length + 1, { id: "g" })];
    assert.equal(transcript(talk).find((chunk) => chunk.items.some((item) => item.key === "g")).key, place);
    assert.equal(items(talk).length, length + 1);
  }
});

test("a run's time is never less than none, whatever the clocks say", () => {
  const at = (second) => `2026-01-01T00:00:${String(second).padStart(2, "0")}Z`;
  assert.equal(seconds({ started_at: at(1), ended_at: at(3) }), 2);
  assert.equal(seconds({ started_at: at(5) }, Date.parse(at(3))), 0);
  assert.equal(seconds({}), 0);
});
