// The one state of the page, and who draws it. Whoever changes the state calls `changed()`; it is drawn once a frame at most.

import { newState } from "./model.js";

export const state = newState();

let draw = () => {};
let due = false;

/** Say how the state is drawn. */
export function drawnBy(view) {
  draw = view;
}

/** Have the page drawn anew, soon. */
export function changed() {
  if (due) return;
  due = true;
  // A page in the background gets no frames, and is not looked at; a timer comes there too, if slowly.
  const next = document.visibilityState === "visible" ? requestAnimationFrame : (then) => setTimeout(then, 200);
  next(() => {
    due = false;
    draw(state);
  });
}
