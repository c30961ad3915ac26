// What people do. Each function changes the state, asks the worker, and says what came of it.

import { Link, Lost, Refused } from "./link.js";
import { address, keep, named, recallIdentity, recallList, remember } from "./memory.js";
import { empty, fieldOf, forget, isBusy, newListing, newTalk, seenFrame, take, takeOlder, takeSnapshot, takeThreads } from "./model.js";
import { changed, state } from "./store.js";

const PAGE = 50;
// Threads that are followed beside the open one, so that going back to them is instant.
const FOLLOWED = 10;
const SPOKEN = 6000;
// Likes and dislikes that a reload does not forget: the worker takes them, and does not give them back.
const REMEMBERED = 500;

let link;
let notes = 0;

/** Begin: connect as whoever was remembered, and look at the thread that the address names. */
export function begin(config, url) {
  state.config = config;
  state.identity = recallIdentity();
  state.unsent = recallList("unsent");
  state.opinions = new Map(recallList("opinions"));
  state.open = named();
  link = new Link(url, hello, {
    status,
    frame: (frame) => {
      take(state, frame);
      arrived(frame);
      changed();
    },
    traffic: (direction, text, frame) => {
      seenFrame(state, direction, text, frame, Date.now());
      if (state.panel === "frames") changed();
    },
  });
  addEventListener("hashchange", () => named() !== state.open && openThread(named()));
  link.open();
}

function hello() {
  const { auth_token: token, ...identity } = state.identity;
  return {
    worker_id: state.config.worker_id,
    ...identity,
    ...(token === "" ? {} : { auth_token: token }),
    client: { name: "playground", capabilities: ["deltas"] },
  };
}

/** Connect as somebody else; what the last one saw is forgotten. */
export function become(identity) {
  Object.assign(state, empty(), { identity });
  keep("identity", identity);
  keep("unsent", []);
  keep("opinions", []);
  address(null);
  link.open();
  changed();
}

/** Try again at once. */
export const retryConnection = () => (link.closed ? link.open() : link.hurry());

// ---------------------------------------------------------------- the connection

function status(told) {
  state.link = told;
  if (told.state === "open") connected();
  else if (told.state === "waiting") {
    for (const talk of state.talks.values()) {
      talk.growing.clear(); // comes again, with all of its text
      talk.awaited.clear(); // whether it still waits then, nobody tells
    }
  }
  changed();
}

async function connected() {
  // What was not looked at while we were away may have changed: only the open thread is resumed, the rest is read anew.
  for (const id of state.talks.keys()) if (id !== state.open) state.talks.delete(id);
  state.threads = new Map([...state.threads].filter(([id]) => id === state.open));
  state.listing = newListing(state.listing.query);
  // What the form shows stays until the new snapshot is here: nothing jumps, and nobody loses the field they are in.
  Object.assign(state.settings, { state: "loading", saving: new Map() });
  remember(state.identity);
  await Promise.all([loadThreads(), follow(state.open), subscribe("settings"), subscribe("analytics")]);
  for (const message of state.unsent.filter((one) => one.state === "waiting")) await post(message);
}

async function subscribe(what) {
  try {
    await link.ask(`${what}.subscribe`, { worker_id: state.config.worker_id });
    state[what].state = "ready";
  } catch (error) {
    if (error instanceof Refused) Object.assign(state[what], { state: "refused", why: error.message, code: error.code });
  }
  changed();
}

function arrived({ type, payload }) {
  if (type === "event.append") {
    keep("unsent", state.unsent);
    // The thread that our first message has opened is the one that is looked at.
    const mine = payload.events.find((event) => beginning.delete(event.client_event_id));
    if (mine === undefined) return;
    if (state.open === null) look(payload.thread_id);
    for (const message of state.unsent.filter((one) => one.thread === null && one.state === "waiting")) {
      message.thread = payload.thread_id; // was said in the same conversation, before it had an id
      post(message);
    }
  }
  if (type === "thread.deleted" && named() === payload.thread_id) {
    address(null);
    say("This conversation was deleted");
  }
}

// ---------------------------------------------------------------- threads

/** The next page of threads, of those that match what is searched for. */
export async function loadThreads() {
  const { listing } = state;
  if (listing.loading || (listing.loaded && listing.cursor === null)) return;
  listing.loading = true;
  changed();
  const asked = { limit: PAGE, cursor: listing.cursor };
  try {
    const page = await link.ask("thread.list", listing.query === "" ? asked : { ...asked, query: listing.query });
    takeThreads(state, listing, page);
  } catch (error) {
    listing.loading = false;
    tell(error);
  }
  changed();
}

/** Show the threads whose title has this in it. */
export function search(query) {
  state.listing = newListing(query.trim());
  loadThreads();
}

/** Look at a thread, or at none: the next message begins one. */
export function openThread(id) {
  address(id);
  state.open = id;
  state.drawer = false;
  if (id !== null && !state.talks.has(id)) follow(id);
  changed();
}

/** Look at a thread that was just begun by a message of ours: all of it is still to come. */
function look(id) {
  address(id);
  state.open = id;
  follow(id);
}

/** Follow a thread: all of it, or what is new since we did. */
async function follow(id) {
  if (id === null) return;
  const known = state.talks.get(id);
  if (known === undefined) state.talks.set(id, newTalk());
  const after = known?.events.at(-1)?.id ?? null;
  try {
    const snapshot = await link.ask("thread.subscribe", after === null ? { thread_id: id } : { thread_id: id, after_event_id: after });
    takeSnapshot(state, snapshot, after);
  } catch (error) {
    if (error instanceof Refused) {
      forget(state, id);
      if (named() === id) address(null);
      tell(error);
    }
    // Else the connection went: it is followed again when it is back.
  }
  letGo();
  changed();
}

/** Follow no more than a few threads: the oldest ones that are quiet go. */
function letGo() {
  const quiet = [...state.talks].filter(([id, talk]) => id !== state.open && !talk.loading && !isBusy(talk));
  for (const [id] of quiet.slice(0, Math.max(0, state.talks.size - FOLLOWED))) {
    state.talks.delete(id);
    link.ask("thread.unsubscribe", { thread_id: id }).catch(() => {});
  }
}

/** The page of events above those that are shown. */
export async function loadOlder(id) {
  const talk = state.talks.get(id);
  if (talk === undefined || talk.loading || !talk.older) return;
  talk.loading = true;
  try {
    const page = await link.ask("event.list", { thread_id: id, before_event_id: talk.events[0].id, limit: 100 });
    // Read anew in between, the talk begins elsewhere.
    if (state.talks.get(id) === talk) takeOlder(state, id, page);
  } catch (error) {
    tell(error);
  }
  talk.loading = false;
  changed();
}

export const rename = (id, title) => ask("thread.update", { thread_id: id, title });
export const remove = (id) => ask("thread.delete", { thread_id: id });

// ---------------------------------------------------------------- messages

// Keys of messages that open a thread, until it is there, and of those that are on their way.
const beginning = new Set();
const posting = new Set();

/** Say something where we are: content parts as on the wire. It is kept until the worker has it, and said once. */
export function send(content) {
  const message = { key: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, thread: state.open, content, state: "waiting", at: Date.now() };
  state.unsent = [...state.unsent, message];
  keep("unsent", state.unsent);
  post(message);
  changed();
}

async function post(message) {
  // What is said before a conversation has begun waits for it, or each message would begin one.
  const first = state.unsent.find((one) => one.thread === null && one.state === "waiting");
  if (posting.has(message.key) || (message.thread === null && message !== first)) return;
  posting.add(message.key);
  if (message.thread === null) beginning.add(message.key);
  const event = { type: "message", actor: "user", content: message.content };
  const where = message.thread === null ? {} : { thread_id: message.thread };
  try {
    await link.ask("event.create", { ...where, client_event_id: message.key, event });
    // It is taken off the list when it is seen; not before, and not if it never is.
  } catch (error) {
    if (error instanceof Refused) refused(message, error);
  }
  posting.delete(message.key);
  keep("unsent", state.unsent);
  changed();
}

function refused(message, error) {
  if (error.code !== "RATE_LIMITED" && error.code !== "CLOSING") {
    Object.assign(message, { state: "refused", error: error.message });
    beginning.delete(message.key);
    if (message.thread === null) next();
  } else setTimeout(() => state.unsent.includes(message) && post(message), 1000 * (error.retryAfter ?? 1));
}

/** Begin the conversation with the next message that waits for it. */
function next() {
  const message = state.unsent.find((one) => one.thread === null && one.state === "waiting");
  if (message !== undefined && link.ready) post(message);
}

/** Say a message that was refused again, or take it back. */
export function resend(message) {
  Object.assign(message, { state: "waiting", error: undefined });
  post(message);
  changed();
}

export function discard(message) {
  state.unsent = state.unsent.filter((one) => one !== message);
  beginning.delete(message.key);
  if (message.thread === null) next();
  keep("unsent", state.unsent);
  changed();
}

/** Stop what is answered and what waits in the open thread. */
export const stop = () => ask("run.cancel", { thread_id: state.open });

/** Say what somebody thinks of an answer. */
export async function judge(eventId, feedback, reason) {
  const payload = { target_type: "event", target_id: eventId, feedback };
  const done = await ask("feedback", reason === "" ? payload : { ...payload, reason });
  if (!done) return;
  state.opinions = new Map([...state.opinions, [eventId, feedback]].slice(-REMEMBERED));
  keep("opinions", [...state.opinions]);
  say("Thank you, the worker was told");
}

// ---------------------------------------------------------------- settings

/** Hold what is put into a field, whatever comes from elsewhere, until it is saved or undone. */
export function draft(fieldId, value) {
  const { drafts, fields } = state.settings;
  const before = drafts.get(fieldId);
  const base = before === undefined ? fieldOf(fields, fieldId)?.value : before.base;
  drafts.set(fieldId, { value, base, sent: before?.sent, tried: false });
  changed();
}

/** Forget a draft: the field shows what the worker has. */
export function undo(fieldId) {
  state.settings.drafts.delete(fieldId);
  state.settings.errors.delete(fieldId);
  changed();
}

/** Set a field to what its draft means; what is refused stays in the form, with what is wrong with it. */
export async function patch(fieldId, value) {
  const { settings } = state;
  const draft = settings.drafts.get(fieldId);
  Object.assign(draft, { sent: value, tried: true });
  settings.saving.set(fieldId, draft);
  settings.saved.delete(fieldId);
  changed();
  try {
    await link.ask("settings.patch", { field_id: fieldId, value });
    settings.errors.delete(fieldId);
    const later = settings.drafts.get(fieldId);
    if (later === draft) settings.drafts.delete(fieldId);
    else if (later !== undefined) later.base = fieldOf(state.settings.fields, fieldId)?.value;
    settings.saved.add(fieldId);
  } catch (error) {
    // Undone meanwhile, or typed on: the answer is to what is no longer there.
    if (settings.drafts.get(fieldId) === draft)
      settings.errors.set(fieldId, faultOf(error));
  }
  if (settings.saving.get(fieldId) === draft) settings.saving.delete(fieldId);
  changed();
}

/** What is wrong with a draft, and whether that may pass by itself. */
const faultOf = (error) =>
  error instanceof Lost
    ? { message: "Not saved: there is no connection", passing: true }
    : { message: error.message, passing: ["RATE_LIMITED", "CLOSING", "SERVER_ERROR"].includes(error.code) };

// ---------------------------------------------------------------- words

/** Ask, and say what went wrong; whether it was done. */
async function ask(type, payload) {
  try {
    await link.ask(type, payload);
    return true;
  } catch (error) {
    tell(error);
    return false;
  }
}

function tell(error) {
  if (error instanceof Lost) say("Not connected: try again in a moment", "bad");
  else if (error instanceof Refused) say(error.message, "bad");
  else throw error;
}

/** Say something for a few seconds. */
export function say(text, kind = "good") {
  notes += 1;
  const note = { id: notes, text, kind };
  state.notes = [...state.notes, note].slice(-3);
  setTimeout(() => {
    state.notes = state.notes.filter((one) => one !== note);
    changed();
  }, SPOKEN);
  changed();
}
