// What the worker counts: how often each event came since the page was opened, and the events themselves, newest first.

import { openThread } from "../actions.js";
import { changed, state as now } from "../store.js";
import { guard } from "../vendor/lit-html/directives/guard.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { json } from "./json.js";
import { note } from "./note.js";
import { clock, controls, row } from "./rows.js";

// Names that have a bar; the rest are counted in one line.
const BARS = 12;

let opened = new WeakSet();

export function analytics({ analytics: heard, threads, link }) {
  if (heard.state === "refused") return refused(heard);
  if (heard.events.length === 0 && heard.counts.size === 0) return none(heard, link);
  const { events, only } = heard;
  const shown = only === null ? events : events.filter((event) => event.event === only);
  return html`<div class="pane feed">
    ${top(heard, bars(heard))}
    <p class="small count">${only === null ? "Newest first" : html`Only <b>${only}</b>, newest first`}</p>
    ${repeat(shown, (event) => event, (event) => guard([event, opened.has(event), threads.has(event.thread_id)], () => line(event, threads)))}
    ${shown.length === 0 ? html`<p class="small count">None of them is kept any more.</p>` : nothing}
  </div>`;
}

const refused = ({ why }) =>
  note("analytics", "Analytics are not for you", html`<p>The worker says: ${why}</p><p>Its <code>permissions</code> decide that, or its <code>authorize</code> hook.</p>`);

const none = (heard, link) =>
  heard.paused
    ? html`<div class="pane feed">
        ${top(heard)} ${note("analytics", "Paused", html`<p>What comes meanwhile is neither counted nor kept.</p>`)}
      </div>`
    : note(
        "analytics",
        link.state === "open" ? "Nothing was counted yet" : "Analytics are shown when the worker is there.",
        html`<p>Threads, messages, runs, errors and feedback are counted as they happen. Say something, and look here again.</p>
          <p>Handlers count what else matters: <code>await analytics.track("order.placed", {...})</code></p>`,
      );

const top = (heard, more = nothing) => html`<div class="top">
  <div class="controls">${controls(heard, () => pause(heard), () => clear(heard))}</div>
  ${more}
</div>`;

function pause(heard) {
  Object.assign(heard, { paused: !heard.paused, skipped: 0 });
  changed();
}

function clear(heard) {
  opened = new WeakSet();
  // The buttons are gone when nothing is left.
  if (!heard.paused) document.getElementById("tabpanel").focus();
  Object.assign(heard, { events: [], counts: new Map(), only: null, skipped: 0 });
  changed();
}

function bars(heard) {
  const counts = [...heard.counts].sort(([name, one], [othername, other]) => other - one || (name < othername ? -1 : 1));
  const most = counts[0][1];
  const rest = counts.slice(BARS).reduce((sum, [, count]) => sum + count, 0);
  const total = counts.reduce((sum, [, count]) => sum + count, 0);
  return html`<ul class="bars" aria-label="Counters">
      ${counts.slice(0, BARS).map(
        ([name, count]) => html`<li>
          <button type="button" aria-pressed=${heard.only === name} title="Show only these" @click=${() => pick(heard, name)}>
            <svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true"><rect width=${(100 * count) / most} height="1" /></svg>
            <span class="name">${name}</span><b>${count.toLocaleString("en")}</b>
          </button>
        </li>`,
      )}
    </ul>
    ${rest > 0 ? html`<p class="small count">and ${rest.toLocaleString("en")} of ${counts.length - BARS} other names</p>` : nothing}
    <p class="small count">${total.toLocaleString("en")} ${total === 1 ? "event" : "events"} since the page was opened</p>`;
}

function pick(heard, name) {
  heard.only = heard.only === name ? null : name;
  changed();
}

function go(id) {
  // Where the panel lies over the conversation, it would hide what is gone to.
  if (matchMedia("(max-width: 68rem)").matches) now.panel = null;
  openThread(id);
}

const line = (event, threads) =>
  row({
    key: event,
    opened,
    again: changed,
    summary: html`<span class="name">${event.event}</span><span class="by">${event.user_id ?? ""}</span><time>${clock(event.timestamp)}</time>`,
    inside: () => html`
      ${threads.has(event.thread_id)
        ? html`<button type="button" @click=${() => go(event.thread_id)}>Go to ${threads.get(event.thread_id).title || "its conversation"}</button>`
        : nothing}
      ${json(event)}
    `,
  });
