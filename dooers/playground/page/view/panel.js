// What is beside the conversation: one tab at a time.

import { changed, state as now } from "../store.js";
import { html } from "../vendor/lit-html/lit-html.js";
import { analytics } from "./analytics.js";
import { frames } from "./frames.js";
import { icon } from "./icons.js";
import { identity } from "./identity.js";
import { settings } from "./settings.js";

export const TABS = {
  settings: { label: "Settings", view: settings },
  analytics: { label: "Analytics", view: analytics },
  frames: { label: "Frames", view: frames },
  identity: { label: "Identity", view: identity },
};

export const panel = (state) => html`
  <aside class="panel" aria-label="Panel" @keydown=${(event) => event.key === "Escape" && open(null)}>
    <header>
      <div role="tablist" aria-label="Panels" @keydown=${move}>
        ${Object.entries(TABS).map(
          ([name, { label }]) => html`<button
            role="tab"
            id="tab-${name}"
            aria-selected=${state.panel === name}
            aria-controls="tabpanel"
            tabindex=${state.panel === name ? 0 : -1}
            @click=${() => open(name)}
          >
            ${label}
          </button>`,
        )}
      </div>
      <button class="icon" aria-label="Close the panel" @click=${() => open(null)}>${icon("close")}</button>
    </header>
    <section role="tabpanel" id="tabpanel" aria-labelledby="tab-${state.panel}" tabindex="0">${TABS[state.panel].view(state)}</section>
  </aside>
`;

function open(name) {
  now.panel = name;
  changed();
}

function move(event) {
  const names = Object.keys(TABS);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step === undefined) return;
  const next = names[(names.indexOf(now.panel) + step + names.length) % names.length];
  open(next);
  document.getElementById(`tab-${next}`).focus();
}
