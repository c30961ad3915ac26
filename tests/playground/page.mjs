// The page's modules that need no browser, and what their tests share.

import { readFile } from "node:fs/promises";

const PAGE = new URL("../../dooers/playground/page/", import.meta.url);

/** A module of the page that imports nothing. As text: to Node a `.js` file without a package.json is no module. */
export async function load(name) {
  const source = await readFile(new URL(name, PAGE), "utf8");
  return import(`data:text/javascript,${encodeURIComponent(source)}`);
}

/** Numbers from 0 to 1 that are the same for the same seed. */
export function chance(seed) {
  let state = seed + 0x9e3779b9;
  return () => {
    state = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    state = Math.imul(state ^ (state >>> 15), 0x735a2d97);
    state ^= state >>> 15;
    return (state >>> 0) / 2 ** 32;
  };
}

export const thread = (id, fields = {}) => ({ id, title: id, last_event_at: "2026-01-01T00:00:00Z", ...fields });

let count = 0;

export const event = (seq, fields = {}) => ({
  id: `e${seq}-${++count}`,
  thread_id: "t",
  seq,
  type: "message",
  actor: "user",
  content: [{ type: "text", text: `text ${seq}` }],
  ...fields,
});

export const answer = (seq, fields = {}) => event(seq, { actor: "assistant", ...fields });
