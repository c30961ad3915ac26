// What is shown of a talk: its events in order, a tool's result beside its call, how each run ended. Plain data: no page.

// Items are drawn chunk by chunk: one of which nothing changed is not looked into, and one that is far away is not laid out.
const CHUNK = 16;

const memos = new WeakMap(); // talk -> {events, runs, items, chunks}

/**
 * The chunks of a talk: `{key, items}`, of items `{key, kind, event, result, running, ended, head}`. What did not change since the last
 * time is the same object again, so `===` says whether something is to be drawn.
 */
export function transcript(talk) {
  let memo = memos.get(talk);
  if (memo?.events !== talk.events || memo.runs !== talk.runs) {
    const items = reuse(itemsOf(talk), memo?.items);
    memo = { events: talk.events, runs: talk.runs, items, chunks: reuse(chunked([...items.values()]), memo?.chunks) };
    memos.set(talk, memo);
  }
  const chunks = [...memo.chunks.values()];
  return talk.growing.size === 0 ? chunks : withGrowing(chunks, talk, memo.items);
}

/** How long a run took, or has taken until `now`: in seconds, never less than none. */
export const seconds = ({ started_at: from, ended_at: to }, now = 0) =>
  Math.max(0, (to === undefined || to === null ? now : Date.parse(to)) - Date.parse(from)) / 1000 || 0;

function itemsOf(talk) {
  const items = [];
  const calls = new Map(); // calls without a result so far; the same id comes again in other runs
  const of = new Map(); // event id -> item
  for (const event of talk.events) {
    const call = event.type === "message" ? "" : `${event.run_id ?? ""} ${event.data?.id ?? event.id}`;
    const open = event.type === "tool.result" ? calls.get(call) : undefined;
    if (open !== undefined) {
      calls.delete(call);
      Object.assign(open, { result: event, running: false });
      of.set(event.id, open);
      continue;
    }
    const item = newItem(event, items.at(-1));
    if (event.type === "tool.call") {
      calls.set(call, item);
      item.running = talk.runs.get(event.run_id)?.status === "running";
    }
    items.push(item);
    of.set(event.id, item);
  }
  // What can be done with an answer is shown when it is the last one, not while more may come.
  const last = items.at(-1);
  if (last !== undefined) last.last = true;
  if (last?.kind === "assistant") last.running = talk.runs.get(last.event.run_id)?.status === "running";
  markEnds(talk, of);
  return new Map(items.map((item) => [item.key, item]));
}

function newItem(event, before) {
  const kind = event.type === "message" ? event.actor : "tool";
  const head = before === undefined || speaker(before) !== speaker({ kind, event });
  return { key: event.id, kind, event, result: undefined, running: false, ended: undefined, head, last: false, growing: undefined };
}

// Tools have no author: they belong to whoever speaks around them.
const speaker = ({ kind, event }) => (kind === "user" ? `user ${event.user_id ?? ""}` : kind === "system" ? "system" : "assistant");

/** A run's end is shown under the last thing that it said, or under its message if it said nothing. */
function markEnds(talk, of) {
  const ended = new Map([...talk.runs].filter(([, run]) => run.status !== "running"));
  for (let at = talk.events.length - 1; at >= 0 && ended.size > 0; at -= 1) {
    const event = talk.events[at];
    for (const id of [event.run_id, event.id]) {
      if (!ended.has(id)) continue;
      of.get(event.id).ended = ended.get(id);
      ended.delete(id);
    }
  }
}

// By number, not by place: what comes in above does not move what is there into other chunks.
const chunkOf = (seq) => Math.floor(seq / CHUNK);

function chunked(items) {
  const chunks = new Map();
  for (const item of items) {
    const key = chunkOf(item.event.seq);
    if (!chunks.has(key)) chunks.set(key, { key, items: [] });
    chunks.get(key).items.push(item);
  }
  return chunks;
}

/** What is being written comes last, in the chunk in which it will be when it is stored: its elements are the same then. */
function withGrowing(chunks, talk, items) {
  const next = (talk.events.at(-1)?.seq ?? 0) + 1;
  let before = [...items.values()].at(-1);
  const key = chunkOf(next);
  const last = chunks.at(-1)?.key === key ? chunks.pop() : { key, items: [] };
  const growing = [];
  for (const message of talk.growing.values()) {
    before = { ...newItem({ type: "message", actor: "assistant", content: [], ...message }, before), growing: message.text };
    growing.push(before);
  }
  return [...chunks, { key, items: [...last.items, ...growing] }];
}

/** Put the old objects in the place of new ones that say the same. */
function reuse(fresh, old) {
  if (old === undefined) return fresh;
  for (const [key, value] of fresh) if (old.has(key) && alike(old.get(key), value)) fresh.set(key, old.get(key));
  return fresh;
}

function alike(one, other) {
  for (const name of Object.keys(one)) {
    const [left, right] = [one[name], other[name]];
    if (left === right) continue;
    if (!Array.isArray(left) || left.length !== right.length || left.some((value, at) => value !== right[at])) return false;
  }
  return true;
}
