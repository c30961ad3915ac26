// The whole page: threads on the left, the conversation, and a panel on the right.

import { retryConnection } from "../actions.js";
import { changed, state as now } from "../store.js";
import { nextTheme, theme } from "../theme.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { chat } from "./chat.js";
import { dialogs } from "./dialogs.js";
import { icon } from "./icons.js";
import { panel, TABS } from "./panel.js";
import { threads } from "./threads.js";

export const page = (state) => html`
  <a class="skip" href="#message" @click=${skip}>Skip to the message field</a>
  <div class="page ${state.panel === null ? "" : "with-panel"} ${state.drawer ? "with-drawer" : ""}">
    ${threads(state)}
    <main>${bar(state)} ${trouble(state)} ${chat(state)}</main>
    ${state.panel === null ? nothing : panel(state)}
    ${state.drawer ? html`<button class="veil" aria-label="Close the list of threads" @click=${() => drawer(false)}></button>` : nothing}
  </div>
  <div class="notes" role="status" aria-live="polite">
    ${state.notes.map((note) => html`<p class="note ${note.kind}">${note.text}</p>`)}
  </div>
  ${dialogs(state)}
`;

const bar = (state) => html`
  <header class="bar">
    <button class="icon only-narrow" aria-label="Threads" aria-expanded=${state.drawer} @click=${() => drawer(true)}>${icon("menu")}</button>
    <h1 title=${titleOf(state)}>${titleOf(state)}</h1>
    ${connection(state)}
    <nav class="tools" aria-label="Panels">
      ${Object.entries(TABS).map(
        ([name, { label }]) => html`<button
          class="icon"
          aria-label=${label}
          title=${label}
          aria-pressed=${state.panel === name}
          @click=${() => toggle(name)}
        >
          ${icon(name)}
        </button>`,
      )}
      <button class="icon" aria-label="Theme: ${theme()}" title="Theme: ${theme()}" @click=${() => (nextTheme(), changed())}>
        ${icon(`theme-${theme()}`)}
      </button>
    </nav>
  </header>
`;

const titleOf = (state) =>
  state.open === null ? "New conversation" : state.threads.get(state.open)?.title || "Untitled conversation";

const WORDS = { connecting: "Connecting…", open: "Connected", waiting: "Offline, trying again", refused: "Not let in" };

const connection = ({ link }) => html`
  <span class="connection ${link.state}" role="status"><i aria-hidden="true"></i><span>${WORDS[link.state]}</span></span>
`;

function trouble({ link }) {
  if (link.state === "refused")
    return html`<div class="trouble bad" role="alert">
      <span>The worker does not let you in: ${link.error.message}</span>
      <button @click=${() => toggle("identity", true)}>Who am I?</button>
      <button @click=${retryConnection}>Try again</button>
    </div>`;
  if (link.state === "waiting" && link.tries > 1)
    return html`<div class="trouble">
      <span>Offline: ${link.why}. What you write is kept and sent when the worker is back.</span>
      <button @click=${retryConnection}>Try now</button>
    </div>`;
  return nothing;
}

function drawer(open) {
  now.drawer = open;
  changed();
}

function toggle(name, always = false) {
  now.panel = now.panel === name && !always ? null : name;
  changed();
}

function skip(event) {
  event.preventDefault();
  document.querySelector("#message")?.focus();
}
