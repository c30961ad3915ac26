// Images and documents. Nothing is loaded from elsewhere, and nothing is opened, before somebody asks for it.

import { say } from "../actions.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { icon } from "./icons.js";
import { fold, isOpen } from "./unfolded.js";

/** A part of a message that is not text; `key` tells it from all others. */
export const part = (content, key) => (content.type === "image" ? image(content, key) : file(content));

const isData = (url) => /^data:/i.test(url);

/** Where a link may lead: http and https, else nowhere. */
export const webUrl = (url) => (/^https?:\/\//i.test(url ?? "") ? url : null);

export function hostOf(url) {
  try {
    return new URL(url).host;
  } catch {
    return "an unknown host";
  }
}

function image({ url = "", alt, width, height }, key) {
  const link = webUrl(url);
  if (!/^data:image\//i.test(url) && link === null) return html`<p class="small">An image that cannot be shown</p>`;
  if (link !== null && !isOpen(key)) {
    return html`<div class="file">
      ${icon("image")}
      <span class="file-name">${alt || "Image"}<small>from ${hostOf(url)}</small></span>
      <button type="button" @click=${() => fold(key, true)}>Load image<span class="unseen"> from ${hostOf(url)}</span></button>
    </div>`;
  }
  return html`<figure class="image">
    <img
      src=${url}
      alt=${alt || "Image without a description"}
      width=${size(width)}
      height=${size(height)}
      decoding="async"
      referrerpolicy="no-referrer"
      @error=${({ target }) => target.closest("figure").classList.add("broken")}
    />
    <figcaption class="small">
      This image could not be shown.
      ${link === null ? nothing : html`<a href=${link} target="_blank" rel="noopener noreferrer">${hostOf(url)}</a>`}
    </figcaption>
  </figure>`;
}

const size = (value) => (Number.isInteger(value) && value > 0 && value < 20_000 ? value : nothing);

function file({ url = "", filename, mime_type: type, size_bytes: bytes }) {
  const name = filename || "Document";
  const link = webUrl(url);
  const length = Number.isFinite(bytes) ? bytes : isData(url) ? decodedLength(url) : null;
  const what = [type, length === null ? null : readable(length), link === null ? null : hostOf(url)].filter(Boolean).join(" · ");
  return html`<div class="file">
    ${icon("file")}
    <span class="file-name">${name}<small>${what}</small></span>
    ${link !== null
      ? html`<a class="button" href=${link} target="_blank" rel="noopener noreferrer">Open<span class="unseen"> ${name}</span></a>`
      : isData(url)
        ? html`<button type="button" @click=${() => download(url, name)}>Download<span class="unseen"> ${name}</span></button>`
        : nothing}
  </div>`;
}

/** How many bytes a text in a data URL stands for. */
export function decodedLength(url) {
  const body = url.length - url.indexOf(",") - 1;
  return /^[^,]*;base64,/i.test(url) ? Math.max(0, Math.floor((body * 3) / 4) - (url.endsWith("==") ? 2 : url.endsWith("=") ? 1 : 0)) : body;
}

/** A number of bytes for people. */
export function readable(bytes) {
  if (bytes < 1024) return `${bytes} B`;
  if (bytes < 1 << 20) return `${Math.round(bytes / 1024)} kB`;
  return `${(bytes / (1 << 20)).toFixed(1)} MB`;
}

/** Save a data URL as a file. As bytes of no kind: a page in it is saved, and never opened as a page of ours. */
function download(url, name) {
  let bytes;
  try {
    const body = url.slice(url.indexOf(",") + 1);
    const text = /^[^,]*;base64,/i.test(url) ? atob(decodeURIComponent(body)) : unescaped(body);
    bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
  } catch {
    return say("This document is damaged: its data cannot be read", "bad");
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "application/octet-stream" }));
  link.download = name.replace(/[\u0000-\u001f\u007f/\\:*?"<>|\u202a-\u202e\u2066-\u2069]/g, "_").slice(-150);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  return undefined;
}

// Percent signs as bytes, whatever they are; other characters as their UTF-8.
const unescaped = (body) =>
  body
    .replace(/[^\x00-\x7f]+/g, (text) => encodeURIComponent(text))
    .replace(/%([0-9a-f]{2})/gi, (_, hex) => String.fromCharCode(parseInt(hex, 16)));
