// The inspector: what went over the wire, newest first. A frame never changes, so its row is drawn once, and what is out of sight is
// left to the browser not to draw.

import { changed } from "../store.js";
import { guard } from "../vendor/lit-html/directives/guard.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { copy } from "./copy.js";
import { icon } from "./icons.js";
import { json, textOf } from "./json.js";
import { note } from "./note.js";
import { clock, controls, row, sized } from "./rows.js";

const SIDES = { both: "Both", in: "In", out: "Out" };

let opened = new Set();

export function frames({ frames: seen }) {
  const shown = seen.all.filter(sieve(seen));
  return html`<div class="pane feed">
    <div class="top sticky">
      <input
        type="search"
        aria-label="Filter frames"
        placeholder="Filter by type or text"
        autocomplete="off"
        spellcheck="false"
        .value=${seen.filter}
        @input=${(event) => set(seen, { filter: event.target.value })}
        @keydown=${(event) => event.key === "Escape" && seen.filter !== "" && (event.stopPropagation(), set(seen, { filter: "" }))}
      />
      <div class="controls">
        <div class="choice" role="group" aria-label="Direction">
          ${Object.entries(SIDES).map(
            ([side, label]) =>
              html`<button type="button" aria-pressed=${seen.side === side} @click=${() => set(seen, { side })}>${label}</button>`,
          )}
        </div>
        ${controls(seen, () => set(seen, { paused: !seen.paused, skipped: 0 }), () => clear(seen))}
      </div>
    </div>
    <p class="small count">${counted(seen, shown)}</p>
    ${seen.all.length === 0
      ? note("frames", seen.paused ? "Paused" : "Nothing yet", html`<p>Every frame to and from the worker is listed here, except pings.</p>`)
      : nothing}
    ${repeat(shown, (frame) => frame.number, (frame) => guard([frame, opened.has(frame.number)], () => line(frame)))}
  </div>`;
}

function set(seen, change) {
  Object.assign(seen, change);
  changed();
}

function clear(seen) {
  opened = new Set();
  set(seen, { all: [], count: 0, skipped: 0 });
}

function counted({ all, count }, shown) {
  const out = all.filter(({ direction }) => direction === "out").length;
  const size = all.reduce((sum, frame) => sum + frame.size, 0);
  const some = shown.length === all.length ? "" : `${shown.length.toLocaleString("en")} shown of `;
  const kept = count > all.length ? `, the last of ${count.toLocaleString("en")}` : "";
  return `${some}${all.length.toLocaleString("en")} ${all.length === 1 ? "frame" : "frames"}${kept}: ${out} out, ${all.length - out} in, ${sized(size)} characters`;
}

// Whether a frame has the text in it, once for each frame and text: frames come fifty times a second, and may be long.
let sought = { text: "", hits: new WeakMap() };

function sieve({ filter, side }) {
  const text = filter.trim().toLowerCase();
  if (text !== sought.text) sought = { text, hits: new WeakMap() };
  const { hits } = sought;
  return (frame) => {
    if (side !== "both" && frame.direction !== side) return false;
    if (text === "") return true;
    if (!hits.has(frame)) hits.set(frame, frame.text.toLowerCase().includes(text) || String(frame.type).toLowerCase().includes(text));
    return hits.get(frame);
  };
}

const line = (frame) =>
  row({
    key: frame.number,
    kind: `${frame.direction} ${isRefusal(frame) ? "bad" : ""}`,
    opened,
    again: changed,
    summary: html`<span class="way" aria-hidden="true">${frame.direction === "out" ? "↑" : "↓"}</span><span class="unseen">${frame.direction}</span>
      <span class="name">${frame.type}</span><span class="by">${sized(frame.size)}</span><time>${clock(frame.at)}</time>`,
    inside: () => html`<button type="button" @click=${() => copy(textOf(parsed(frame.text)))}>${icon("copy")}Copy</button>${json(parsed(frame.text))}`,
  });

const isRefusal = ({ type, text }) => type === "ack" && /"ok":\s*false/.test(text);

/** What a frame says; one that was cut for its length is no JSON any more, and shown as it is. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
