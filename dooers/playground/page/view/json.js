// A JSON value to read: indented, coloured by what is what, and cut where it is long until somebody wants all of it.

import { AsyncDirective } from "../vendor/lit-html/async-directive.js";
import { directive } from "../vendor/lit-html/directive.js";
import { html, noChange, nothing } from "../vendor/lit-html/lit-html.js";

// Characters and lines that are shown at first, and characters above which colours cost more than they tell.
const AT_FIRST = 3000;
const LINES = 40;
const COLOURED = 60_000;

const TOKEN = /("(?:\\.|[^"\\])*"?)(\s*:)?|\b(?:true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;

/** The text of a value as it is shown: a text as it is, anything else as indented JSON. */
export const textOf = (value) => (typeof value === "string" ? value : (JSON.stringify(value, null, 2) ?? String(value)));

// A directive, so that "Show all" is remembered for the place on the page where it was pressed, and so that a value which is
// the same one as before is not put into words again.
class Json extends AsyncDirective {
  render(value) {
    if (this.begun && value === this.value) return noChange;
    Object.assign(this, { begun: true, value, text: textOf(value), whole: false });
    return this.shown();
  }

  shown() {
    const { text, whole } = this;
    const first = whole ? text : beginning(text);
    const all = ({ target }) => {
      target.closest(".json").focus(); // the button is gone then
      this.whole = true;
      this.setValue(this.shown());
    };
    return html`<div class="json" tabindex="-1">
      <pre><code>${typeof this.value === "string" ? first : coloured(first)}${first.length < text.length ? "…" : nothing}</code></pre>
      ${first.length < text.length ? html`<button type="button" @click=${all}>Show all ${text.length.toLocaleString("en")} characters</button>` : nothing}
    </div>`;
  }
}

/** A JSON value as a view. All of it goes in as text. */
export const json = directive(Json);

function beginning(text) {
  const lines = text.slice(0, AT_FIRST).split("\n", LINES + 1);
  // A little more than what is shown at first is not worth a button.
  if (text.length <= AT_FIRST * 1.2 && text.split("\n", LINES + 10).length < LINES + 10) return text;
  return lines.slice(0, LINES).join("\n");
}

function coloured(text) {
  if (text.length > COLOURED) return text;
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(TOKEN)) {
    const [all, quoted, colon] = match;
    const kind = quoted === undefined ? kindOf(all) : colon === undefined ? "text" : "key";
    const token = quoted ?? all;
    parts.push(text.slice(at, match.index), html`<span class=${kind}>${token}</span>`);
    at = match.index + token.length;
  }
  return [...parts, text.slice(at)];
}

const kindOf = (token) => (/^[tfn]/.test(token) ? "word" : "number");
