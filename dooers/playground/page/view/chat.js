// The conversation that is looked at, and where the next message is written.

import { discard, loadOlder, resend } from "../actions.js";
import { isBusy, runningOf } from "../model.js";
import { changed, state as now } from "../store.js";
import { seconds, transcript } from "../transcript.js";
import { guard } from "../vendor/lit-html/directives/guard.js";
import { ref } from "../vendor/lit-html/directives/ref.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { composer } from "./composer.js";
import { icon } from "./icons.js";
import { bubble, message } from "./message.js";
import { isStuck, olderBy, scrolled, stick, watch } from "./scroll.js";
import { unfolded } from "./unfolded.js";

export const chat = (state) => html`<div class="chat">
  ${repeat([state.open], String, () => log(state))}
  <div class="foot">
    ${isStuck() ? nothing : html`<button type="button" class="latest" @click=${stick}>${icon("arrow")}Jump to latest</button>`}
    ${composer(state)}
  </div>
</div>`;

const onScroll = { handleEvent: scrolled, passive: true };

function log(state) {
  const talk = state.talks.get(state.open);
  const unsent = state.unsent.filter((one) => one.thread === state.open);
  const empty = unsent.length === 0 && (talk === undefined || (talk.events.length === 0 && talk.growing.size === 0));
  return html`<div class="log" role="log" aria-label="Messages" aria-busy=${talk?.loading ? "true" : nothing} tabindex="0" ${ref(watch)} @scroll=${onScroll}>
    <div class="talk ${empty ? "empty" : ""}">
      ${empty ? nothingYet(state, talk) : nothing} ${talk === undefined ? nothing : [above(talk), ...messages(state, talk)]}
      ${repeat(unsent, (one) => one.key, (one) => waiting(state, one))} ${talk === undefined ? nothing : atWork(state, talk)}
    </div>
  </div>`;
}

const messages = (state, talk) => [
  repeat(
    transcript(talk),
    (chunk) => chunk.key,
    (chunk) => html`<div class="chunk">${guard([...chunk.items, state.opinions, unfolded()], () => inChunk(state, chunk))}</div>`,
  ),
];

const inChunk = (state, chunk) =>
  repeat(
    chunk.items,
    (item) => item.key,
    (item) => html`<div class="item ${item.kind} ${item.last ? "last" : ""}">
      ${guard([item, state.opinions.get(item.key), unfolded()], () => message(item, state.opinions.get(item.key)))}
    </div>`,
  );

// ---------------------------------------------------------------- before the first and after the last

function nothingYet({ open, config, link }, talk) {
  if (open !== null && (talk === undefined || talk.loading)) {
    return html`<p class="hello small" role="status">${link.state === "open" ? "Loading…" : "Waits for the connection…"}</p>`;
  }
  return html`<div class="hello">
    <span class="mark" aria-hidden="true">${[...config.assistant_name][0] ?? "A"}</span>
    <h2>${config.assistant_name}</h2>
    <p>${open === null ? "What can I do for you? Your first message begins the conversation." : "Nothing was said here yet."}</p>
    <p class="keys small"><kbd>Enter</kbd> sends, <kbd>Shift</kbd> <kbd>Enter</kbd> begins a line, <kbd>Esc</kbd> stops the answer</p>
  </div>`;
}

function above(talk) {
  if (!talk.older) return nothing;
  return html`<p class="above">
    <button type="button" ?disabled=${talk.loading} @click=${older}>${talk.loading ? "Loading…" : "Load earlier messages"}</button>
  </p>`;
}

function older() {
  const talk = now.talks.get(now.open);
  if (talk === undefined || talk.loading || !talk.older || now.link.state !== "open") return false;
  loadOlder(now.open);
  changed();
  return true;
}

olderBy(older);

/** A message of ours that the worker does not have yet. */
function waiting({ link }, one) {
  const bad = one.state === "refused";
  return html`<div class="item user">
    <article class="message user mine unsent ${bad ? "refused" : ""}" aria-label="You, not sent yet">
      ${bubble(one.content, one.key)}
      <div class="under">
        ${bad
          ? html`<span class="why" role="alert">Not sent: ${one.error}</span>
              <button type="button" class="quiet" @click=${() => resend(one)}>Retry</button>
              <button type="button" class="quiet" @click=${() => discard(one)}>Discard</button>`
          : html`<span>${link.state === "open" ? "Sending…" : "Waits for the connection"}</span>
              ${link.state === "open" ? nothing : html`<button type="button" class="quiet" @click=${() => discard(one)}>Discard</button>`}`}
      </div>
    </article>
  </div>`;
}

// ---------------------------------------------------------------- at work

let tick = 0;

/** That somebody is at work, when nothing of it is seen grow. */
function atWork(state, talk) {
  if (!isBusy(talk)) return nothing;
  clearTimeout(tick);
  tick = setTimeout(changed, 1000);
  const waits = talk.awaited.size - (runningOf(talk).length === 0 ? 1 : 0);
  return html`<div aria-live="off" class="working ${talk.growing.size > 0 ? "writes" : ""}">
    <span class="dots" aria-hidden="true"><i></i><i></i><i></i></span>
    <span>${words(state, talk)}${waits > 0 ? `, ${waits} more ${waits === 1 ? "message waits" : "messages wait"}` : ""}</span>
  </div>`;
}

function words({ config, link }, talk) {
  if (link.state !== "open") return "Goes on when the connection is back";
  const run = runningOf(talk)[0];
  const took = run === undefined ? 0 : Math.floor(seconds(run, Date.now()));
  const who = run?.agent_id || config.assistant_name;
  const does = talk.growing.size > 0 ? "is writing" : "is at work";
  return `${who} ${does}${took >= 3 ? `, ${took} s` : "…"}`;
}
