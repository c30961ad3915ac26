// A tool's work as a card that unfolds: what it was asked, and what it gave back.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { copy } from "./copy.js";
import { icon } from "./icons.js";
import { json, textOf } from "./json.js";
import { fold, isOpen } from "./unfolded.js";

const HINT = 80;

export function tool(item) {
  const { event, result, running } = item;
  const { name = "tool", display_name: shown, args } = { ...result?.data, ...event.data };
  const gave = event.type === "tool.call" ? result?.data : event.data;
  const open = isOpen(item.key);
  return html`<div class="tool-card">
    <details ?open=${open} @toggle=${({ target }) => fold(item.key, target.open)}>
      <summary>
        ${icon("tool")}
        <span class="tool-name">${shown || name}</span>
        <span class="tool-hint">${open ? nothing : hint(args)}</span>
        ${state(gave, running)}
      </summary>
      ${open ? body(item, { name, shown, args, gave }) : nothing}
    </details>
  </div>`;
}

function state(gave, running) {
  if (gave !== undefined) return html`<span class="tool-state done">Done</span>`;
  if (running) return html`<span class="tool-state running"><i class="spinner" aria-hidden="true"></i>Running</span>`;
  return html`<span class="tool-state">No result</span>`;
}

function body({ running }, { name, shown, args, gave }) {
  return html`<div class="tool-body">
    ${shown && shown !== name ? html`<p class="small">Tool <code>${name}</code></p>` : nothing}
    ${args === undefined ? nothing : value("Arguments", args)}
    ${gave !== undefined
      ? value("Result", gave.result)
      : html`<p class="small">${running ? "Waiting for its result…" : "It ended without a result."}</p>`}
  </div>`;
}

const value = (label, data = null) => html`<section class="code" aria-label=${label}>
  <div class="code-bar">
    <span>${label}</span>
    <button type="button" class="quiet" aria-label="Copy ${label.toLowerCase()}" @click=${() => copy(textOf(data))}>Copy</button>
  </div>
  ${json(data)}
</section>`;

/** What it was asked, in a line: enough to tell two calls apart. */
function hint(args) {
  if (args === undefined || args === null || typeof args !== "object") return "";
  const text = Object.values(args)
    .slice(0, 4)
    .map((one) => (typeof one === "string" ? one.slice(0, HINT) : typeof one === "object" ? "…" : String(one)))
    .join(", ");
  return text.length > HINT ? `${text.slice(0, HINT)}…` : text;
}
