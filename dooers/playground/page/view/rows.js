// What the feeds of the panel share: times, who is heard, and a row that shows its inside only once it is opened.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { icon } from "./icons.js";

/** A time of day with its milliseconds, in the zone of whoever looks. */
export function clock(at) {
  const time = new Date(at);
  if (Number.isNaN(time.getTime())) return "";
  const two = (number) => String(number).padStart(2, "0");
  const parts = [time.getHours(), time.getMinutes(), time.getSeconds()].map(two).join(":");
  return `${parts}.${String(time.getMilliseconds()).padStart(3, "0")}`;
}

/** A size in characters, short. */
export const sized = (size) => (size < 1000 ? `${size}` : size < 999_500 ? `${(size / 1000).toFixed(1)}k` : `${(size / 1e6).toFixed(1)}M`);

/** A row to open: `summary`, and `inside()` once it is open. `opened` holds what is open by `key`; `again` draws it. */
export const row = ({ key, kind = "", summary, inside, opened, again }) => html`<details
  class="row ${kind}"
  .open=${opened.has(key)}
  @toggle=${({ target }) => {
    if (target.open === opened.has(key)) return;
    if (target.open) opened.add(key);
    else opened.delete(key);
    again();
  }}
>
  <summary>${icon("fold")}${summary}</summary>
  ${opened.has(key) ? html`<div class="inside">${inside()}</div>` : nothing}
</details>`;

/** Pause or go on, and begin anew. */
export const controls = ({ paused, skipped }, pause, clear) => html`
  <button type="button" @click=${pause}>${icon(paused ? "play" : "pause")}${paused ? "Resume" : "Pause"}</button>
  <button type="button" @click=${clear}>${icon("clear")}Clear</button>
  ${paused && skipped > 0 ? html`<span class="small">${skipped.toLocaleString("en")} not kept</span>` : nothing}
`;
