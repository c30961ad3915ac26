// The conversations, newest first: find one, open it, name it, throw it away.

import { loadThreads, openThread, search } from "../actions.js";
import { isBusy, shownThreads } from "../model.js";
import { changed, state as now } from "../store.js";
import { guard } from "../vendor/lit-html/directives/guard.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { ask } from "./dialogs.js";
import { icon } from "./icons.js";
import { group, moment, short } from "./times.js";

const PAUSE = 250; // milliseconds that somebody has to stop typing before it is searched
const AHEAD = 300; // pixels from the end at which the next page is asked for

export const threads = (state) => html`<nav class="threads" aria-label="Threads" @keydown=${left}>
  <header>
    <div class="search">
      ${icon("search")}
      <input type="search" aria-label="Search threads" placeholder="Search" autocomplete="off" spellcheck="false" @input=${typed} />
    </div>
    <button type="button" class="icon" aria-label="New thread" title="New thread" @click=${begin}>${icon("plus")}</button>
  </header>
  <div class="thread-list" @scroll=${onScroll}>
    ${guard([state.threads, state.open, busy(state), ...listed(state.listing), state.link.state, minute()], () => list(state))}
  </div>
  ${who(state)} ${menu()}
</nav>`;

// What the list is drawn from, beside the threads themselves; while an answer grows none of it changes.
const listed = (listing) => [listing, listing.query, listing.cursor, listing.loading, listing.loaded, listing.until];
const minute = () => Math.floor(Date.now() / 60_000);
const busy = ({ talks }) => [...talks].filter(([, talk]) => isBusy(talk)).map(([id]) => id).join(" ");

function list(state) {
  const { listing, link } = state;
  const shown = shownThreads(state);
  const groups = Map.groupBy === undefined ? grouped(shown) : Map.groupBy(shown, (thread) => group(thread.last_event_at, Date.now()));
  return html`
    ${repeat(
      groups,
      ([name]) => name,
      ([name, all]) => html`<section aria-label=${name}>
        <h2>${name}</h2>
        <ul role="list">
          ${repeat(all, (thread) => thread.id, (thread) => row(state, thread))}
        </ul>
      </section>`,
    )}
    ${shown.length === 0 ? none(listing, link) : nothing}
    ${listing.loaded && listing.cursor !== null
      ? html`<p class="above">
          <button type="button" ?disabled=${listing.loading} @click=${loadThreads}>${listing.loading ? "Loading…" : "Load more"}</button>
        </p>`
      : nothing}
  `;
}

function grouped(shown) {
  const groups = new Map();
  for (const thread of shown) {
    const name = group(thread.last_event_at, Date.now());
    groups.set(name, [...(groups.get(name) ?? []), thread]);
  }
  return groups;
}

const titleOf = (thread) => thread.title || "Untitled conversation";

const row = (state, thread) => html`<li class=${thread.id === state.open ? "open" : ""}>
  <a
    href="#/${encodeURIComponent(thread.id)}"
    title=${titleOf(thread)}
    aria-current=${thread.id === state.open ? "page" : nothing}
    @click=${(event) => go(event, thread.id)}
  >
    <span class="title">${titleOf(thread)}</span>
    ${isBusy(state.talks.get(thread.id))
      ? html`<i class="spinner" role="img" aria-label="At work"></i>`
      : html`<time datetime=${thread.last_event_at} title=${moment(thread.last_event_at)}>${short(thread.last_event_at, Date.now())}</time>`}
  </a>
  <button
    type="button"
    class="icon small-icon"
    aria-label="Actions for ${titleOf(thread)}"
    aria-haspopup="menu"
    @click=${(event) => openMenu(event, thread)}
  >
    ${icon("more")}
  </button>
</li>`;

function none({ query, loaded, cursor }, link) {
  if (!loaded) return html`<p class="none small">${link.state === "open" ? "Loading…" : "Waits for the connection…"}</p>`;
  if (cursor !== null) return html`<p class="none small">Nothing so far.</p>`;
  if (query !== "") return html`<p class="none small">No conversation has “${query}” in its title.</p>`;
  return html`<p class="none small">No conversations yet. The first message begins one.</p>`;
}

/** Who is looking; one click leads to where that is changed. */
function who({ identity }) {
  if (identity === null) return nothing;
  const name = identity.user_name || identity.user_id;
  const where = `${identity.organization_id} / ${identity.workspace_id}`;
  return html`<footer>
    <button type="button" class="me" title="Change who you are" @click=${toIdentity}>
      <span class="mark" aria-hidden="true">${[...name][0] ?? "?"}</span>
      <span class="names"><span>${name}</span><small>${where}</small></span>
    </button>
  </footer>`;
}

// ---------------------------------------------------------------- what people do

const onScroll = { handleEvent: ({ target }) => scrolled(target), passive: true };
let timer = 0;

function typed({ target }) {
  clearTimeout(timer);
  timer = setTimeout(() => target.value.trim() !== now.listing.query && search(target.value), PAUSE);
}

function begin() {
  openThread(null);
  document.querySelector("#message")?.focus();
}

function go(event, id) {
  // Another tab or window is the browser's business.
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  openThread(id);
}

function scrolled(target) {
  const { listing } = now;
  const near = target.scrollHeight - target.scrollTop - target.clientHeight < AHEAD;
  if (near && listing.loaded && listing.cursor !== null && !listing.loading) loadThreads();
}

function toIdentity() {
  now.panel = "identity";
  now.drawer = false;
  changed();
}

function left(event) {
  if (event.key !== "Escape" || !now.drawer) return;
  now.drawer = false;
  changed();
}

// ---------------------------------------------------------------- one menu for all of them

let chosen;

const menu = () => html`<div class="menu" id="thread-menu" role="menu" aria-label="Actions" popover @keydown=${along}>
  <button type="button" role="menuitem" @click=${() => pick("rename")}>Rename</button>
  <button type="button" role="menuitem" class="bad" @click=${() => pick("delete")}>Delete</button>
</div>`;

function openMenu({ currentTarget }, thread) {
  chosen = thread;
  const element = document.querySelector("#thread-menu");
  element.showPopover();
  const from = currentTarget.getBoundingClientRect();
  const top = from.bottom + element.offsetHeight + 4 > innerHeight ? from.top - element.offsetHeight - 4 : from.bottom + 4;
  element.style.top = `${top}px`;
  element.style.left = `${Math.max(8, Math.min(from.right - element.offsetWidth, innerWidth - element.offsetWidth - 8))}px`;
  element.firstElementChild.focus();
}

function pick(kind) {
  document.querySelector("#thread-menu").hidePopover();
  // As it is called by now, not when the menu was opened.
  ask({ kind, thread: now.threads.get(chosen.id) ?? chosen });
}

function along(event) {
  const items = [...event.currentTarget.children];
  const at = items.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1 + items.length, Home: 0, End: items.length - 1 }[event.key];
  if (event.key === "Tab") event.currentTarget.hidePopover();
  if (to === undefined) return;
  event.preventDefault();
  items[to % items.length].focus();
}
