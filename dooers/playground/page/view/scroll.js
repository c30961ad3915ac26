// Where the messages are scrolled to: at the end as long as one is there, else where one reads, whatever comes in above or below.

import { changed } from "../store.js";

// Pixels: from the end that still count as there; from the top, at which older messages are asked for.
const NEAR = 48;
const AHEAD = 900;

let log; // the element that scrolls
let last = 0;
let stuck = true;
let shown = true; // what of it the page was told
let held = null; // {element, top}: what has to stay where it is while older messages come in above
let older = () => {};

const observer = new ResizeObserver(settle);

/** Whether what is newest is kept in sight. */
export const isStuck = () => stuck;

/** Follow this element from now on, beginning at its end: for `ref`. */
export function watch(element) {
  observer.disconnect();
  log = element;
  stuck = true;
  held = null;
  last = 0;
  if (element === undefined) return;
  observer.observe(element);
  observer.observe(element.firstElementChild);
}

/** Call this when there should be more above: it says whether it has asked. */
export function olderBy(ask) {
  older = ask;
}

/** Go to the newest, and stay there. */
export function stick() {
  stuck = true;
  held = null;
  settle();
}

/** Stay with what is in sight, although it is about to grow: for what somebody unfolds. */
export function rest() {
  stuck = false;
}

export function scrolled() {
  const { scrollTop, scrollHeight, clientHeight } = log;
  const up = scrollTop < last - 1;
  last = scrollTop;
  const end = scrollHeight - scrollTop - clientHeight < NEAR;
  // What grows moves the end away from us; only going up means that somebody wants to be elsewhere.
  if (end !== stuck && (end || up)) {
    stuck = end;
    shown = stuck;
    changed();
  }
  if (held !== null) held.top = held.element.getBoundingClientRect().top;
  more();
}

function more() {
  if (log.scrollTop > AHEAD) return;
  const first = log.querySelector(".message, .tool-card");
  if (first === null || !older()) return;
  // At the very top a browser keeps the top in sight, not what one reads.
  if (log.scrollTop < 1) log.scrollTop = 1;
  held = { element: first, top: first.getBoundingClientRect().top };
}

function settle() {
  if (log === undefined) return;
  if (stuck) log.scrollTop = log.scrollHeight;
  else if (held?.element.isConnected) {
    // Browsers that hold their place themselves have done so by now, and nothing is left to do.
    const moved = held.element.getBoundingClientRect().top - held.top;
    if (Math.abs(moved) > 1) log.scrollTop += moved;
  }
  last = log.scrollTop;
  const end = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
  // Said to the button that leads there, and once more where what was unfolded did not reach the end.
  if (stuck !== shown || (end && !stuck)) {
    stuck ||= end;
    shown = stuck;
    changed();
  }
  if (log.scrollHeight <= log.clientHeight) more();
}
