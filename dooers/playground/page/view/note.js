// What a panel says where it has nothing to show.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { icon } from "./icons.js";

export const note = (name, title, more = nothing) => html`<div class="pane blank">
  ${icon(name)}
  <h2>${title}</h2>
  ${more}
</div>`;
