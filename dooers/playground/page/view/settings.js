// The settings form, made of the fields that the worker declares. What is typed is a draft until it is saved; what others save comes in
// beside it. Everything that is said here comes over the wire, and goes in as text.

import { draft, patch, undo } from "../actions.js";
import { fieldOf } from "../model.js";
import { changed, state as now } from "../store.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { ref } from "../vendor/lit-html/directives/ref.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { json } from "./json.js";
import { note } from "./note.js";
import { picture } from "./picture.js";

// The arrows of a number and the parts of a date make a change each: they are sent when it is quiet.
const QUIET = 700;

export function settings({ settings: form, link }) {
  if (form.state === "refused" && form.code !== "NOT_CONFIGURED") return refused(form);
  if (form.state === "refused" || (form.state === "ready" && form.fields.length === 0)) return none();
  if (form.fields.length === 0) return waiting(link);
  return html`<div class="pane settings">
    <p class="small">Of the whole worker, for everybody. What you change is saved when you leave the field.</p>
    ${form.fields.map((item, index) => (item.fields === undefined ? setting(form, item) : group(form, item, index)))}
    <p class="unseen" role="status">${lastSaved(form)}</p>
  </div>`;
}

/** What a screen reader is told: it reads all of it anew, so it is the last one alone. */
function lastSaved({ saved, fields }) {
  const field = fieldOf(fields, [...saved].at(-1));
  return field === undefined ? "" : `${labelOf(field)}: saved`;
}

const waiting = (link) =>
  note("settings", link.state === "open" ? "Loading the settings…" : "The settings are shown when the worker is there.");

const refused = ({ why }) =>
  note(
    "settings",
    "These settings are not for you",
    html`<p>The worker says: ${why}</p>
      <p>Its <code>permissions</code> decide that, or its <code>authorize</code> hook. As somebody else you may see them.</p>
      <button type="button" @click=${() => ((now.panel = "identity"), changed())}>Who am I?</button>`,
  );

const none = () =>
  note(
    "settings",
    "This worker has no settings",
    html`<p>Declare a class of them, and the form is made of it. Handlers ask for it by its type.</p>
      <pre class="sample"><code>${SAMPLE}</code></pre>`,
  );

const SAMPLE = `@worker.settings
@dataclass
class Settings:
    model: Literal["small", "large"] = "small"
    greeting: str = "Hello"

@worker.handler
async def answer(settings: Settings) -> str:
    return settings.greeting`;

// ---------------------------------------------------------------- groups

// Which groups somebody has folded or opened: it stays so when the panel is closed and opened again.
const folds = new Map();

function group(form, { id, label, fields, collapsible }, index) {
  const inner = fields.map((field) => setting(form, field));
  const name = `settings-group-${index}`;
  if (!collapsible)
    return html`<div class="group" role="group" aria-labelledby=${name}>
      <h2 id=${name}>${label || id}</h2>
      ${inner}
    </div>`;
  const open = folds.get(id) ?? collapsible === "open";
  const wrong = fields.filter((field) => form.errors.has(field.id)).length;
  // Not live(): the browser says "toggle" a moment after it has opened, and what is drawn in between would close it again.
  return html`<details class="group" .open=${open} @toggle=${(event) => folds.set(id, event.target.open)}>
    <summary id=${name}>${label || id}${wrong > 0 ? html` <span class="tag bad">${wrong} not saved</span>` : nothing}</summary>
    <div class="inner" role="group" aria-labelledby=${name}>${inner}</div>
  </details>`;
}

// ---------------------------------------------------------------- one field

const labelOf = (field) => field?.label || field?.id || "";

// Ids of wire fields may hold anything; those of the page's elements must not hold spaces.
const names = new Map();

function nameOf(id) {
  if (!names.has(id)) names.set(id, `setting-${names.size + 1}`);
  return names.get(id);
}

function setting(form, field) {
  const draft = form.drafts.get(field.id);
  const value = draft === undefined ? field.value : draft.value;
  const error = form.errors.get(field.id);
  const name = nameOf(field.id);
  const tells = [
    [field.help, "help"],
    [typeof field.max_length === "number" && typeof value === "string", "count"],
    [elsewhere(field, draft), "elsewhere"],
    [error, "error"],
  ].flatMap(([told, what]) => (told ? `${name}-${what}` : []));
  const at = { field, name, value, error, tells: tells.length === 0 ? nothing : tells.join(" ") };
  const input = Object.hasOwn(INPUTS, field.type) ? INPUTS[field.type](at) : unknown(field);
  const check = field.type === "checkbox";
  const labelled = Object.hasOwn(INPUTS, field.type) && field.type !== "image";
  const label = labelled
    ? html`<label for=${name} class=${field.required ? "required" : ""}>${labelOf(field)}</label>`
    : html`<span class="label">${labelOf(field)}</span>`;
  return html`<div class="setting ${check ? "check" : ""}" @focusout=${(event) => left(field, event)} @mousedown=${stay}>
    <div class="head">${check ? input : nothing}${label}${mark(form, field, draft, error)}</div>
    ${check ? nothing : input} ${away(field, value)} ${about(field, value, name)}
    ${theirs(field, draft, `${name}-elsewhere`)} ${fault(field, error, `${name}-error`)}
  </div>`;
}

/** How it stands with a field: one word beside its label. */
function mark(form, field, draft, error) {
  if (form.saving.has(field.id)) return html`<span class="stand">Saving…</span>`;
  if (error !== undefined) return nothing;
  if (draft !== undefined) return html`<span class="stand">Not saved yet</span>`;
  if (form.saved.has(field.id)) return html`<span class="stand good">Saved</span>`;
  if (field.readonly && field.type !== "image") return html`<span class="stand">Read only</span>`;
  if (field.value === null && !["image", "select"].includes(field.type)) return html`<span class="stand">Not set</span>`;
  return field.type === "password" ? html`<span class="stand">Set</span>` : nothing;
}

/** The way back to nothing, for what has no empty input of its own. */
function away(field, value) {
  const one = field.type === "password" ? "Remove" : ["text", "textarea", "email", "checkbox"].includes(field.type) ? "Unset" : null;
  if (one === null || value === null || field.required || field.readonly) return nothing;
  return html`<button type="button" class="quiet" @click=${() => (enter(field), give(field, null))}>
    ${one}<span class="unseen"> ${labelOf(field)}</span>
  </button>`;
}

/** What is said under an input: what it is for, and how much of the room is used. */
function about({ help, max_length: most }, value, name) {
  const counts = typeof most === "number" && typeof value === "string";
  if (!help && !counts) return nothing;
  const length = counts ? [...value].length : 0; // as the worker counts: code points
  return html`<div class="about">
    ${help ? html`<small id="${name}-help">${help}</small>` : nothing}
    ${counts
      ? html`<small id="${name}-count" class=${length > most ? "over" : ""}>${length} of ${most}<span class="unseen"> characters</span></small>`
      : nothing}
  </div>`;
}

/** Whether somebody else has set what is being changed here. */
const elsewhere = (field, draft) => draft !== undefined && field.value !== draft.base && field.value !== draft.sent;

const theirs = (field, draft, id) =>
  elsewhere(field, draft)
    ? html`<p class="elsewhere">
        <span id=${id}>Changed elsewhere to <b>${worded(field, field.value)}</b></span>
        <button type="button" @click=${() => back(field)}>Take that</button>
      </p>`
    : nothing;

const fault = (field, error, id) =>
  error === undefined
    ? nothing
    : html`<div class="fault">
        <span role="alert" id=${id}>${error.message.startsWith(`${field.id}: `) ? error.message.slice(field.id.length + 2) : error.message}</span>
        ${error.passing ? html`<button type="button" @click=${() => retry(field)}>Try again</button>` : nothing}
        <button type="button" @click=${() => back(field)}>Undo</button>
      </div>`;

function worded(field, value) {
  if (value === null) return "not set";
  if (field.type === "password") return "another password";
  if (field.type === "checkbox") return value === true ? "on" : "off";
  const text = field.options?.find((option) => option.value === value)?.label ?? String(value);
  return text === "" ? "nothing" : text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

// ---------------------------------------------------------------- inputs, by type

const INPUTS = {
  text: (at) => (/[\r\n]/.test(at.value ?? "") ? area(at) : typed(at, "text")),
  email: (at) => typed(at, "email"),
  number: (at) => typed(at, "number"),
  date: (at) => typed(at, "date"),
  password: (at) => typed(at, "password"),
  textarea: (at) => area(at),
  select: (at) => select(at),
  checkbox: (at) => checkbox(at),
  image: ({ field }) => picture(field),
};

function typed({ field, name, value, error, tells }, type) {
  const password = type === "password";
  const isSet = password && field.value !== null;
  // What is set of a password is never here: the input holds what is typed to replace it.
  const text = password && !now.settings.drafts.has(field.id) ? "" : textOf(value);
  return html`<input
    id=${name}
    type=${type}
    ${ref(shows(text))}
    placeholder=${isSet ? "•••••••• type to replace it" : (field.placeholder ?? nothing)}
    min=${field.min ?? nothing}
    max=${field.max ?? nothing}
    step=${type === "number" ? (field.step ?? "any") : nothing}
    autocomplete=${password ? "new-password" : "off"}
    spellcheck=${type === "text" ? nothing : "false"}
    ?required=${field.required && !isSet}
    ?readonly=${field.readonly}
    aria-invalid=${error === undefined ? nothing : "true"}
    aria-describedby=${tells}
    @input=${(event) => draft(field.id, event.target.value)}
    @change=${(event) => (type === "number" || type === "date") && later(field, event.target)}
    @keydown=${(event) => event.key === "Enter" && !event.isComposing && commit(field, event.target)}
  />`;
}

const area = ({ field, name, value, error, tells }) => html`<textarea
  id=${name}
  ${ref(shows(textOf(value)))}
  rows=${Math.min(Math.max(Math.round(field.rows ?? 4), 2), 40)}
  placeholder=${field.placeholder ?? nothing}
  ?required=${field.required}
  ?readonly=${field.readonly}
  aria-invalid=${error === undefined ? nothing : "true"}
  aria-describedby=${tells}
  @input=${(event) => draft(field.id, event.target.value)}
></textarea>`;

const NOT_SET = "-";

function select({ field, name, value, error, tells }) {
  const options = field.options ?? [];
  const at = options.findIndex((option) => option.value === value);
  const chosen = at >= 0 ? String(at) : value === null ? NOT_SET : "gone";
  const hasNull = options.some((option) => option.value === null);
  const option = (key, label, disabled = false) =>
    html`<option value=${key} .selected=${live(chosen === key)} ?disabled=${disabled}>${label}</option>`;
  return html`<select
    id=${name}
    ?required=${field.required}
    ?disabled=${field.readonly}
    aria-invalid=${error === undefined ? nothing : "true"}
    aria-describedby=${tells}
    @change=${({ target }) => give(field, target.value === NOT_SET ? null : options[Number(target.value)].value)}
  >
    ${chosen === "gone" ? option("gone", `${worded(field, value)} (no longer offered)`, true) : nothing}
    ${hasNull || (field.required && chosen !== NOT_SET) ? nothing : option(NOT_SET, field.placeholder || "Not set", field.required)}
    ${options.map((one, index) => option(String(index), one.label || worded(field, one.value)))}
  </select>`;
}

const checkbox = ({ field, name, value, error, tells }) => html`<input
  id=${name}
  type="checkbox"
  .checked=${live(value === true)}
  .indeterminate=${live(value === null)}
  ?disabled=${field.readonly}
  aria-invalid=${error === undefined ? nothing : "true"}
  aria-describedby=${tells}
  @change=${(event) => give(field, event.target.checked)}
/>`;

const unknown = (field) => html`${json(field.value)}<small>This page has no input for the type “${String(field.type)}”.</small>`;

const textOf = (value) => (value === null ? "" : String(value)).replace(/\r\n?/g, "\n");

/** Have an input show a text. Where somebody is in it, the caret stays. */
const shows = (text) => (input) => {
  if (input === undefined || input.value === text) return;
  const { selectionStart: start, selectionEnd: end, selectionDirection: direction } = input;
  input.value = text;
  if (start !== null && input === document.activeElement) input.setSelectionRange(start, end, direction);
};

// ---------------------------------------------------------------- what is done with them

/** Leaving a field sends what was typed in it; but not for the buttons that are there to throw it away. */
function left(field, { currentTarget: setting, relatedTarget: to }) {
  const input = document.getElementById(nameOf(field.id));
  if (input === null || (setting.contains(to) && to.closest(".elsewhere, .fault") !== null)) return;
  commit(field, input);
}

/** A button beside an input takes no focus from it: not every browser says where the focus goes when it goes to a button. */
const stay = (event) => event.target.closest("button") && event.preventDefault();

const timers = new Map();

function later(field, input) {
  clearTimeout(timers.get(field.id));
  timers.set(field.id, setTimeout(() => commit(field, input), QUIET));
}

/** Set it at once. */
function give(field, value) {
  draft(field.id, value);
  send(field, value);
}

/** Send what was typed, if it is something new. */
function commit(field, input) {
  clearTimeout(timers.get(field.id));
  if (input.isConnected && input.validity.badInput) return wrong(field, field.type === "date" ? "expected a whole date" : "expected a number");
  const typed = now.settings.drafts.get(field.id);
  if (typed === undefined || typed.tried) return undefined;
  return send(field, meant(field, typed.value));
}

/** Put the focus into a field: the buttons beside it that do something to it are gone when they have done it. */
function enter(field) {
  const input = document.getElementById(nameOf(field.id));
  input?.focus();
  return input;
}

function retry(field) {
  enter(field);
  send(field, meant(field, now.settings.drafts.get(field.id)?.value ?? null));
}

/** Show again what the worker has. */
function back(field) {
  const input = enter(field);
  // What is no number and no date has no value that could be told from the old one.
  if (input?.validity?.badInput) input.value = "";
  undo(field.id);
}

function send(field, value) {
  const known = fieldOf(now.settings.fields, field.id);
  if (known === undefined || now.settings.drafts.get(field.id) === undefined) return undefined;
  const untouched = field.type === "password" ? value === "" : value === known.value;
  return untouched ? undo(field.id) : patch(field.id, value);
}

/** The value that a draft stands for. */
function meant(field, value) {
  if (typeof value !== "string") return value;
  if (field.type === "number") return value === "" ? null : Number(value);
  if (field.type === "date") return value === "" ? null : value;
  return value;
}

function wrong(field, message) {
  if (!now.settings.drafts.has(field.id)) draft(field.id, "");
  now.settings.errors.set(field.id, { message, passing: false });
  changed();
}
