// What is known, and what a frame changes of it. Plain data and functions over it: no page, no network, no clock.

export const SHOWN_FRAMES = 1000;
export const SHOWN_ANALYTICS = 500;
// Names of analytics events that are counted.
const COUNTED = 500;
// Longer frames are cut in the inspector: a picture is megabytes.
const LONGEST_FRAME = 20_000;

/** Everything the page knows. Whoever changes it calls `changed()` of store.js. */
export const newState = () => ({
  config: { worker_id: "worker", assistant_name: "Assistant", version: "", max_frame_bytes: 4 << 20, authenticated: false },
  identity: null, // {organization_id, workspace_id, user_id, user_name, user_role, auth_token}
  link: { state: "connecting", tries: 0 }, // what Link tells: connecting, open, waiting, refused
  ...empty(),
  frames: newFrames(), // see view/frames.js
  panel: null, // which tab is open: settings, analytics, frames, identity
  drawer: false, // the threads, where the window is narrow
  dialog: null, // {kind, ...}: see view/dialogs.js
  notes: [], // {id, text, kind}: what is said for a few seconds
});

/** What belongs to one identity: all of it goes when somebody else looks. */
export const empty = () => ({
  threads: new Map(), // id -> thread, as on the wire
  listing: newListing(""),
  open: null, // the id of the thread that is looked at; null for one that is not begun
  talks: new Map(), // id -> talk
  unsent: [], // messages of ours that were not seen stored: {key, thread, content, state: waiting|refused, error, at}
  opinions: new Map(), // event id -> like|dislike
  settings: newSettings(),
  analytics: newAnalytics(),
});

/** The form: `drafts` is field id -> {value, base, sent, tried}: what is typed, over which value, and what was last sent of it. */
const newSettings = () => ({
  state: "loading", // ready, refused (with `why` and `code`)
  fields: [], // as on the wire
  drafts: new Map(),
  errors: new Map(), // field id -> {message, passing}: what is wrong with the draft
  saving: new Map(), // field id -> the draft that is on its way
  saved: new Set(), // field ids, the last one last, until they are changed again
});

/** What was counted and heard. `skipped` is what came while it was paused. */
const newAnalytics = () => ({ state: "loading", events: [], counts: new Map(), paused: false, skipped: 0, only: null });

const newFrames = () => ({ all: [], count: 0, paused: false, skipped: 0, filter: "", side: "both" });

/** The list of threads as far as it was paged. */
export const newListing = (query) => ({ query, cursor: null, total: null, loading: false, loaded: false, until: null });

/** A thread that is followed: its events in order, what grows in it, and its runs. */
export const newTalk = () => ({
  events: [],
  ids: new Set(),
  growing: new Map(), // event id -> {id, run_id, text, author}
  runs: new Map(), // id -> run
  awaited: new Set(), // messages that came while we looked and whose turn has shown nothing yet
  older: false, // whether there is more above
  loading: true,
});

// ---------------------------------------------------------------- what is pushed

const TAKE = {
  "thread.upsert": (state, { thread }) => know(state, [thread]),
  "thread.deleted": (state, { thread_id: id }) => forget(state, id),
  "event.append": (state, { thread_id: id, events }) => append(state, id, events),
  "event.delta": (state, piece) => grow(state, piece),
  "run.upsert": (state, { run }) => takeRun(state, run),
  "settings.snapshot": (state, { fields }) => {
    state.settings = { ...state.settings, state: "ready", fields };
  },
  "settings.patch": (state, { field_id: id, value }) => {
    const field = fieldOf(state.settings.fields, id);
    if (field !== undefined) field.value = value;
    state.settings.saved.delete(id); // one of ours is told before it is acknowledged, so it is there again in a moment
  },
  "analytics.event": (state, event) => {
    const { events, counts, paused } = state.analytics;
    if (paused) {
      state.analytics.skipped += 1;
      return;
    }
    events.unshift(event);
    events.length = Math.min(events.length, SHOWN_ANALYTICS);
    if (counts.has(event.event) || counts.size < COUNTED) counts.set(event.event, (counts.get(event.event) ?? 0) + 1);
  },
};

/** Take a pushed frame. Unknown ones are none of our business. */
export function take(state, { type, payload }) {
  if (Object.hasOwn(TAKE, type)) TAKE[type](state, payload);
}

/** Take a `thread.snapshot`: the whole view of a thread, or what came since the event `after`. */
export function takeSnapshot(state, { thread, events, runs, has_more: more }, after = null) {
  know(state, [thread]);
  let talk = state.talks.get(thread.id);
  const stored = events.filter((event) => !event.streaming);
  // Asked for what came after an event that is no longer known, the worker gives the newest ones.
  const gap = after !== null && stored.length > 0 && talk !== undefined && stored[0].seq > lastSeq(talk) + 1;
  if (talk === undefined || after === null || gap) {
    talk = newTalk();
    talk.older = after === null || gap ? more : (stored[0]?.seq ?? 1) > 1;
    state.talks.set(thread.id, talk);
  }
  talk.loading = false;
  talk.growing.clear();
  talk.runs = new Map([...talk.runs].filter(([, run]) => run.status !== "running"));
  for (const run of runs) talk.runs.set(run.id, run);
  append(state, thread.id, events, false);
}

/** Take a page of older events. */
export function takeOlder(state, id, { events, has_more: more }) {
  const talk = state.talks.get(id);
  if (talk === undefined) return;
  talk.older = more;
  insert(talk, events);
}

/** Take a page of the list of threads. */
export function takeThreads(state, listing, { threads, cursor = null, total_count: total = null }) {
  know(state, threads);
  Object.assign(listing, { cursor, total: total ?? listing.total, loading: false, loaded: true });
  listing.until = cursor === null ? null : threads.at(-1)?.last_event_at ?? listing.until;
}

// What is drawn from a map asks whether it is still the same one: a change makes a new one.
function know(state, threads) {
  state.threads = new Map(state.threads);
  for (const thread of threads) state.threads.set(thread.id, thread);
}

/** Events of a thread; `live` if they just happened: only then is it known that nobody has answered them. */
function append(state, id, events, live = true) {
  const keys = new Set(events.map((event) => event.client_event_id));
  const begun = state.unsent.some((message) => message.thread === null && keys.has(message.key));
  state.unsent = state.unsent.filter((message) => !keys.has(message.key));
  // A thread that our own message has opened is followed from then on, without being asked for.
  if (begun && !state.talks.has(id)) state.talks.set(id, { ...newTalk(), loading: false });
  const talk = state.talks.get(id);
  if (talk === undefined) return;
  for (const event of events) {
    if (event.streaming) {
      const text = event.content.map((part) => part.text ?? "").join("\n\n");
      talk.growing.set(event.id, { id: event.id, run_id: event.run_id, author: event.author, text });
      continue;
    }
    talk.growing.delete(event.id);
    if (talk.ids.has(event.id)) continue; // a repeat: it was answered, or is counted
    // In a queue the answers come in order, so one answer means that its message waits no more.
    if (event.actor !== "user") talk.awaited.delete([...talk.awaited][0]);
    else if (live) talk.awaited.add(event.id);
  }
  // One from above what is shown, told again, would leave a hole below itself: it comes with its page.
  const top = live && talk.older ? (talk.events[0]?.seq ?? 0) : 0;
  insert(talk, events.filter((event) => !event.streaming && event.seq >= top));
}

function insert(talk, events) {
  const fresh = events.filter((event) => !talk.ids.has(event.id));
  if (fresh.length === 0) return;
  for (const event of fresh) talk.ids.add(event.id);
  // A sort of what is in order already costs one look at each.
  talk.events = [...talk.events, ...fresh].sort((one, other) => one.seq - other.seq);
}

function grow(state, { thread_id: id, event_id: eventId, run_id: runId, text }) {
  const talk = state.talks.get(id);
  if (talk === undefined || talk.ids.has(eventId)) return;
  const known = talk.growing.get(eventId);
  talk.growing.set(eventId, { ...(known ?? { id: eventId, run_id: runId }), text: (known?.text ?? "") + text });
}

function takeRun(state, run) {
  const talk = state.talks.get(run.thread_id);
  if (talk === undefined) return;
  talk.runs = new Map(talk.runs).set(run.id, run);
  talk.awaited.delete(run.id); // the first run of a turn has its message's id
  if (run.status === "running") return;
  for (const message of talk.growing.values()) if (message.run_id === run.id) talk.growing.delete(message.id);
}

/** Forget a thread that is gone. */
export function forget(state, id) {
  state.threads = new Map([...state.threads].filter(([known]) => known !== id));
  state.talks.delete(id);
  state.unsent = state.unsent.filter((message) => message.thread !== id);
  if (state.open === id) state.open = null;
}

// ---------------------------------------------------------------- what follows from it

/** The threads to show, newest first: those that match what is searched for, as far down as the list was paged. */
export function shownThreads({ threads, listing }) {
  const wanted = listing.query.toLocaleLowerCase();
  return [...threads.values()]
    .filter((thread) => listing.until === null || thread.last_event_at >= listing.until)
    .filter((thread) => wanted === "" || (thread.title ?? "").toLocaleLowerCase().includes(wanted))
    .sort((one, other) => compare(other.last_event_at, one.last_event_at) || compare(other.id, one.id));
}

const compare = (one, other) => (one < other ? -1 : Number(one > other));

/** Whether something is answered, or waits to be, in a talk. */
export const isBusy = (talk) =>
  talk !== undefined && (talk.growing.size > 0 || talk.awaited.size > 0 || runningOf(talk).length > 0);

/** The runs that are at work. */
export const runningOf = (talk) => [...talk.runs.values()].filter((run) => run.status === "running");

/** The `seq` of the last event that is known to be stored. */
export const lastSeq = (talk) => talk.events.at(-1)?.seq ?? 0;

/** The message that an answer answers: the one whose run it belongs to, else the last one of a person before it. */
export function asked(talk, event) {
  const at = talk.events.indexOf(event);
  return (
    talk.events.find((one) => one.id === event.run_id) ??
    talk.events.findLast((one, index) => index < (at < 0 ? Infinity : at) && one.actor === "user")
  );
}

/** A field of the settings, in whatever group. */
export function fieldOf(fields, id) {
  for (const item of fields) {
    if (item.fields === undefined ? item.id === id : false) return item;
    const inner = item.fields?.find((field) => field.id === id);
    if (inner !== undefined) return inner;
  }
  return undefined;
}

/** A frame as the inspector keeps it: without what proves who somebody is, and without passwords. */
export function seenFrame(state, direction, text, frame, at) {
  const { frames } = state;
  if (frame.type === "ping" || frame.type === "pong") return;
  if (frames.paused) {
    frames.skipped += 1;
    return;
  }
  frames.count += 1;
  const secret = secretOf(state, direction, frame);
  const shown = secret === null ? text : JSON.stringify({ ...frame, payload: { ...frame.payload, [secret]: "•••" } });
  frames.all.unshift({
    number: frames.count,
    direction,
    type: frame.type,
    size: text.length,
    text: shown.length > LONGEST_FRAME ? `${shown.slice(0, LONGEST_FRAME)}… (${text.length} characters)` : shown,
    at,
  });
  frames.all.length = Math.min(frames.all.length, SHOWN_FRAMES);
}

/** The key of a frame's payload under which lies what nobody may read over a shoulder, or null. */
function secretOf(state, direction, { type, payload }) {
  if (direction !== "out") return null;
  if (type === "connect" && payload.auth_token) return "auth_token";
  if (type !== "settings.patch" || payload.value === null) return null;
  return fieldOf(state.settings.fields, payload.field_id)?.type === "password" ? "value" : null;
}
