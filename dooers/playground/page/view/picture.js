// An image among the settings. What lies in the value itself is shown; what lies elsewhere is fetched only when somebody asks for it,
// as fetching tells whoever keeps it that somebody looks.

import { changed } from "../store.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { icon } from "./icons.js";

// Addresses of which somebody wanted to see the image.
const wanted = new Set();

export function picture({ label, id, value, src, width, height }) {
  const source = value || src;
  if (!source) return html`<p class="picture none">${icon("image")} No image</p>`;
  if (/^data:image\//i.test(source) || wanted.has(source))
    return html`<div class="picture">
      <img src=${source} alt=${label || id} width=${pixels(width)} height=${pixels(height)} referrerpolicy="no-referrer" decoding="async" />
    </div>`;
  const host = hostOf(source);
  if (host === null) return html`<p class="picture none">Not the address of an image: ${source.slice(0, 200)}</p>`;
  return html`<p class="picture none">
    ${icon("image")} <span>An image at <b>${host}</b></span>
    <button type="button" @click=${() => (wanted.add(source), changed())}>Load it</button>
  </p>`;
}

function hostOf(source) {
  try {
    const { protocol, host } = new URL(source);
    return protocol === "https:" || protocol === "http:" ? host : null;
  } catch {
    return null;
  }
}

const pixels = (size) => (size > 0 ? Math.min(Math.round(size), 4096) : nothing);
