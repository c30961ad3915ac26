// Where a message is written: text, images and documents. What is not sent yet is kept for each conversation.

import { say, send, stop } from "../actions.js";
import { isBusy } from "../model.js";
import { changed, state as now } from "../store.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { ref } from "../vendor/lit-html/directives/ref.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { icon } from "./icons.js";
import { decodedLength, readable } from "./parts.js";
import { stick } from "./scroll.js";

// What a frame has beside its content.
const ENVELOPE = 1024;
const KEY = "dooers.draft.";
// As long as the field can grow by itself there is nothing to measure.
const GROWS = CSS.supports("field-sizing", "content");

const attached = new Map(); // place -> parts; pictures are too big for the session's storage
let area;
let reading = 0; // files that are being read
let dragged = false;

export function composer(state) {
  const busy = isBusy(state.talks.get(state.open));
  const parts = partsOf(state.open);
  const text = draft(state.open);
  return html`<form
    class="composer ${dragged ? "dragged" : ""}"
    aria-label="Your message"
    @submit=${submit}
    @dragover=${dragging}
    @dragleave=${() => drag(false)}
    @drop=${drop}
  >
    ${parts.length === 0 ? nothing : attachments(parts)}
    <textarea
      id="message"
      aria-label="Message"
      rows="1"
      placeholder="Message ${state.config.assistant_name}"
      autocomplete="off"
      .value=${live(text)}
      ${ref(found)}
      @input=${typed}
      @keydown=${pressed}
      @paste=${pasted}
    ></textarea>
    <div class="composer-foot">
      <label class="icon attach" title="Attach images or documents">
        ${icon("clip")}<span class="unseen">Attach files</span>
        <input class="unseen" type="file" multiple @change=${chosen} />
      </label>
      ${dragged ? html`<span class="small">Drop files to attach them</span>` : nothing}
      <span class="gap"></span>
      ${busy
        ? html`<button type="button" class="icon stop" aria-label="Stop" aria-keyshortcuts="Escape" title="Stop (Esc)" @click=${stop}>
            ${icon("stop")}
          </button>`
        : nothing}
      <button type="submit" class="icon primary" aria-label="Send" title="Send (Enter)" ?disabled=${isEmpty(text, parts) || reading > 0}>
        ${icon("send")}
      </button>
    </div>
  </form>`;
}

/** Where something is written: what one identity has not sent yet, another does not find in its field. */
function place(thread) {
  const { organization_id: organization, workspace_id: workspace, user_id: user } = now.identity ?? {};
  return JSON.stringify([organization, workspace, user, thread]);
}

const isEmpty = (text, parts) => text.trim() === "" && parts.length === 0;

// ---------------------------------------------------------------- text

const drafts = new Map();

function draft(thread) {
  const key = KEY + place(thread);
  if (!drafts.has(key)) drafts.set(key, stored(key));
  return drafts.get(key);
}

function stored(key) {
  try {
    return sessionStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}

function write(text) {
  const key = KEY + place(now.open);
  drafts.set(key, text);
  try {
    if (text === "") sessionStorage.removeItem(key);
    else sessionStorage.setItem(key, text);
  } catch {
    // No room, or switched off: a reload forgets it then.
  }
  changed();
}

function found(element) {
  area = element;
  grow();
}

function grow() {
  if (GROWS || area === undefined) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

function typed() {
  write(area.value);
  grow();
}

function pressed(event) {
  // Enter and Escape belong to the input method as long as it is composing; Safari says so by the code alone.
  if (event.isComposing || event.keyCode === 229) return;
  if (event.key === "Enter" && !event.shiftKey && !event.altKey) submit(event);
  else if (event.key === "Escape" && isBusy(now.talks.get(now.open))) stop();
}

function submit(event) {
  event.preventDefault();
  const text = draft(now.open);
  const parts = partsOf(now.open);
  if (isEmpty(text, parts) || reading > 0) return;
  if (room(now.open) < 0) {
    say(`This message is too long: the worker takes ${readable(now.config.max_frame_bytes)} at once`, "bad");
    return;
  }
  const content = [...(text.trim() === "" ? [] : [{ type: "text", text: text.trim() }]), ...parts];
  attached.delete(place(now.open));
  write("");
  send(content);
  stick();
  area.value = "";
  grow();
  area.focus();
}

// ---------------------------------------------------------------- files

const partsOf = (thread) => attached.get(place(thread)) ?? [];

/** How many bytes still fit into the frame of the message that is written. */
function room(thread) {
  const content = JSON.stringify([{ type: "text", text: draft(thread) }, ...partsOf(thread)]);
  return now.config.max_frame_bytes - ENVELOPE - new TextEncoder().encode(content).length;
}

const attachments = (parts) => html`<ul class="attached" aria-label="Attached">
  ${repeat(
    parts,
    (one) => one,
    (one) => html`<li>
      ${one.type === "image" ? html`<img src=${one.url} alt="" />` : icon("file")}
      <span class="file-name">${nameOf(one)}<small>${readable(decodedLength(one.url))}</small></span>
      <button type="button" class="icon small-icon" aria-label="Remove ${nameOf(one)}" title="Remove" @click=${() => detach(one)}>
        ${icon("close")}
      </button>
    </li>`,
  )}
</ul>`;

const nameOf = (one) => one.filename ?? one.alt ?? "Image";

function detach(one) {
  attached.set(place(now.open), partsOf(now.open).filter((other) => other !== one));
  changed();
  area.focus();
}

async function attach(files) {
  // The conversation may be another one when they are read.
  const thread = now.open;
  for (const file of files) {
    const left = Math.min(room(thread), now.config.max_data_url_bytes ?? Infinity);
    // As base64 a file is a third longer.
    if (Math.ceil(file.size / 3) * 4 + file.name.length + ENVELOPE > left) {
      const fits = readable(Math.max(0, Math.floor((left * 3) / 4)));
      say(`“${file.name}” is too big: ${readable(file.size)}, and there is room for ${fits}`, "bad");
      continue;
    }
    reading += 1;
    changed();
    try {
      const read = partOf(file, await readUrl(file));
      attached.set(place(thread), [...partsOf(thread), read]);
    } catch {
      say(`“${file.name}” could not be read`, "bad");
    }
    reading -= 1;
    changed();
  }
}

/** Pictures as pictures, as far as every browser shows them; all else as documents. */
function partOf(file, url) {
  const type = file.type || "application/octet-stream";
  if (/^image\/(png|jpeg|gif|webp|avif|svg\+xml)$/i.test(type)) return { type: "image", url, mime_type: type, alt: file.name || "Image" };
  return { type: "document", url, filename: file.name || "document", mime_type: type, size_bytes: file.size };
}

const readUrl = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    // Without its parameters ("text/plain;charset=utf-8"): the worker takes a type and base64.
    reader.readAsDataURL(new Blob([file], { type: file.type.split(";")[0] || "application/octet-stream" }));
  });

function chosen({ target }) {
  attach([...target.files]);
  target.value = ""; // so that the same file can be chosen again
  area.focus();
}

function pasted(event) {
  const files = [...event.clipboardData.files];
  // A table from a spreadsheet comes as a picture too: who pastes text means the text.
  if (files.length === 0 || event.clipboardData.types.includes("text/plain")) return;
  event.preventDefault();
  attach(files);
}

function dragging(event) {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  drag(true);
}

function drop(event) {
  drag(false);
  if (event.dataTransfer.files.length === 0) return;
  event.preventDefault();
  attach([...event.dataTransfer.files]);
}

function drag(on) {
  if (dragged === on) return;
  dragged = on;
  changed();
}
