// Who one is. Another identity sees other threads: the quickest way to see isolation with one's own eyes.

import { become } from "../actions.js";
import { newIdentity, recentIdentities, sameIdentity } from "../memory.js";
import { changed } from "../store.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

const FIELDS = {
  organization_id: { label: "Organization", required: true },
  workspace_id: { label: "Workspace", required: true },
  user_id: { label: "User", required: true, wide: true },
  user_name: { label: "Name" },
  user_role: { label: "Role" },
  auth_token: { label: "Token", type: "password", wide: true, help: "Given to the worker's authenticate hook. It is kept for this tab only." },
};

// What is being typed, until it is connected with; null: whoever one is.
let typed = null;
let missing = new Set();

export function identity({ identity: me, config, link }) {
  const form = typed ?? me ?? newIdentity();
  return html`<div class="pane identity">
    ${standing(me, link)}
    <p class="small">
      Another organization or workspace sees other threads, and another user does where the worker has <code>private_threads</code>.
      ${config.authenticated
        ? "This worker has an authenticate hook: it decides who you are, whatever is claimed here."
        : "This worker has no authenticate hook, so it believes whatever is claimed here, the role that its permissions go by too."}
    </p>
    <form autocomplete="off" novalidate @submit=${connect}>
      ${Object.entries(FIELDS).map(([name, field]) => input(name, field, form[name]))}
      <div class="controls wide">
        <button type="submit" class="primary">Connect</button>
        ${typed === null ? nothing : html`<button type="button" @click=${reset}>Reset</button>`}
      </div>
    </form>
    ${recent(me, config)}
  </div>`;
}

const STANDING = { open: "You are", connecting: "Connecting as", waiting: "Offline, coming back as", refused: "Not let in as" };

const standing = (me, link) => html`<div class="standing ${link.state}" role="status">
  <p><span class="small">${STANDING[link.state]}</span> <b>${me?.user_name || me?.user_id || "nobody"}</b>${me?.user_role ? html` <span class="tag">${me.user_role}</span>` : nothing}</p>
  <p class="small">${me?.user_id || "no user"} · ${me?.organization_id} / ${me?.workspace_id}</p>
  ${link.state === "refused" ? html`<p class="why">The worker says: ${link.error.message}</p>` : nothing}
</div>`;

const input = (name, { label, type: kind = "text", required = false, wide = false, help }, value) => html`<div class="setting ${wide ? "wide" : ""}">
  <div class="head"><label for="identity-${name}">${label}</label>${required || kind === "password" ? nothing : html`<span class="stand">Optional</span>`}</div>
  <input
    id="identity-${name}"
    name=${name}
    type=${kind}
    .value=${value}
    maxlength=${kind === "password" ? nothing : 200}
    ?required=${required}
    autocomplete=${kind === "password" ? "new-password" : "off"}
    autocapitalize="none"
    spellcheck="false"
    aria-invalid=${missing.has(name) ? "true" : nothing}
    aria-describedby="${help ? `identity-${name}-help ` : ""}identity-${name}-error"
    @input=${(event) => change(name, event.target.value)}
  />
  ${help ? html`<small id="identity-${name}-help">${help}</small>` : nothing}
  ${missing.has(name)
    ? html`<div class="fault"><span role="alert" id="identity-${name}-error">Expected an id: a worker takes an empty one for nobody</span></div>`
    : nothing}
</div>`;

function type(form) {
  typed = form;
  missing = new Set();
  changed();
}

function reset() {
  type(null);
  document.getElementById("identity-organization_id").focus();
}

function change(name, value) {
  typed = { ...formNow(), [name]: value };
  if (value.trim() !== "") missing.delete(name);
  changed();
}

/** The form as it stands in the page: what is typed and what was there before. */
const formNow = () =>
  Object.fromEntries(Object.keys(FIELDS).map((name) => [name, document.getElementById(`identity-${name}`).value]));

function connect(event) {
  event.preventDefault();
  // Ids are compared letter for letter: a blank that slipped in would be somebody else.
  const form = Object.fromEntries(Object.entries(formNow()).map(([name, value]) => [name, value.trim()]));
  missing = new Set(Object.keys(FIELDS).filter((name) => FIELDS[name].required && form[name] === ""));
  if (missing.size > 0) {
    document.getElementById(`identity-${[...missing][0]}`).focus();
    return changed();
  }
  typed = null;
  return become(form);
}

function recent(me, config) {
  const others = recentIdentities().filter((one) => me === null || !sameIdentity(one, me));
  if (others.length === 0) return nothing;
  return html`<section class="recent" aria-labelledby="identity-recent">
    <h2 id="identity-recent">Lately</h2>
    ${others.map(
      (one) => html`<button type="button" @click=${() => again(one, config)}>
        <b>${one.user_name || one.user_id}</b>${one.user_role ? html` <span class="tag">${one.user_role}</span>` : nothing}
        <span class="small">${one.user_id} · ${one.organization_id} / ${one.workspace_id}</span>
      </button>`,
    )}
  </section>`;
}

/** Become somebody again; where that takes a token, it is asked for: tokens are not remembered. */
function again(one, { authenticated }) {
  if (!authenticated) {
    type(null);
    return become(one);
  }
  type(one);
  return document.getElementById("identity-auth_token").focus();
}
