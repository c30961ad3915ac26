// What is beside the conversation: one tab at a time. Where there is no room beside it, the panel lies over the page like a dialog:
// the rest is inert meanwhile, so that the focus stays inside.

import { changed, state as now } from "../store.js";
import { ref } from "../vendor/lit-html/directives/ref.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
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

// As in layout.css and panels.css.
const over = matchMedia("(max-width: 68rem)");
over.addEventListener("change", changed);

export const panel = (state) => html`
  ${over.matches ? html`<div class="shade" aria-hidden="true" @click=${close}></div>` : nothing}
  <div
    class="panel"
    role=${over.matches ? "dialog" : "complementary"}
    aria-modal=${over.matches ? "true" : nothing}
    aria-label="Panel"
    ${ref(over.matches ? alone : beside)}
    @keydown=${escape}
  >
    <header role="presentation">
      <div role="tablist" aria-label="Panels" @keydown=${move}>
        ${Object.entries(TABS).map(
          ([name, { label }]) => html`<button
            role="tab"
            id="tab-${name}"
            data-label=${label}
            aria-selected=${state.panel === name}
            aria-controls="tabpanel"
            tabindex=${state.panel === name ? 0 : -1}
            @click=${() => open(name)}
          >
            ${label}
          </button>`,
        )}
      </div>
      <button class="icon" aria-label="Close the panel" title="Close the panel" @click=${close}>${icon("close")}</button>
    </header>
    <section role="tabpanel" id="tabpanel" aria-labelledby="tab-${state.panel}" tabindex="0">${TABS[state.panel].view(state)}</section>
  </div>
`;

// ---------------------------------------------------------------- where the focus is

// What had the focus when the panel came, and whether it is there.
let opener = null;
let there = false;

const alone = (panel) => come(panel, true);
const beside = (panel) => come(panel, false);

/** The panel came, went, or lies otherwise than before. */
function come(panel, over) {
  if (panel === undefined) {
    // It is told so too when the one function takes the other's place.
    queueMicrotask(() => document.querySelector(".panel") === null && went());
    return;
  }
  if (!there) opener = document.activeElement;
  // It is put into the page after this.
  queueMicrotask(() => {
    shut(over);
    if (!there) document.getElementById(`tab-${now.panel}`)?.focus();
    there = true;
  });
}

function went() {
  there = false;
  shut(false);
}

/** Have everything but the panel out of reach, or back in it. */
function shut(over) {
  for (const other of document.querySelectorAll(".skip, .page > :not(.panel, .shade)")) other.inert = over;
}

function close() {
  // The button of the tab that is shown is the one that would open it again.
  const button = document.querySelector('.tools [aria-pressed="true"]');
  const back = opener?.isConnected && opener !== document.body && !opener.closest(".panel") ? opener : button;
  shut(false);
  // Before the panel is gone: a field that is left so is saved.
  back?.focus();
  opener = null;
  open(null);
}

function escape(event) {
  if (event.key !== "Escape" || event.isComposing || event.defaultPrevented) return;
  event.preventDefault();
  close();
}

// ---------------------------------------------------------------- tabs

function open(name) {
  now.panel = name;
  changed();
}

const STEPS = {
  ArrowRight: (at, count) => (at + 1) % count,
  ArrowLeft: (at, count) => (at + count - 1) % count,
  Home: () => 0,
  End: (at, count) => count - 1,
};

function move(event) {
  if (!Object.hasOwn(STEPS, event.key)) return;
  event.preventDefault();
  const names = Object.keys(TABS);
  const next = names[STEPS[event.key](names.indexOf(now.panel), names.length)];
  document.getElementById(`tab-${next}`).focus();
  open(next);
}
