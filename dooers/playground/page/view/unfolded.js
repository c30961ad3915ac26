// What somebody has opened: tool cards, long texts, pictures from elsewhere. The same set until something is opened or closed.

import { changed } from "../store.js";
import { rest } from "./scroll.js";

let open = new Set();

/** All that is open; to see whether it changed. */
export const unfolded = () => open;

export const isOpen = (key) => open.has(key);

/** Open or close it. */
export function fold(key, now) {
  if (open.has(key) === now) return;
  rest();
  open = new Set(open);
  if (now) open.add(key);
  else open.delete(key);
  changed();
}
