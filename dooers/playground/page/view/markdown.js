// Markdown as it grows: cut into its top-level blocks, of which only those that changed are made anew. Two walls stand between a
// text and the page: raw HTML in it is shown as text, and what comes out goes through DOMPurify with a short list of what may be there.

import { changed } from "../store.js";
import DOMPurify from "../vendor/dompurify/purify.es.mjs";
import { AsyncDirective, directive } from "../vendor/lit-html/async-directive.js";
import { noChange } from "../vendor/lit-html/lit-html.js";
import { Lexer, Marked, Parser } from "../vendor/marked/marked.esm.js";
import { copyButton } from "./copy.js";

// Some texts take a parser long, and whoever wrote them may have meant it. Beyond these, a text is shown as it was written.
const LONGEST_INLINE = 8000;
const DEEPEST_QUOTE = /^(?:[ \t]*>){30}/m;
const BUDGET = 250; // milliseconds for one message at once

// Tags that people and models write in Markdown and that can do nothing, as long as they have no attributes.
const HARMLESS = /&lt;(\/?(?:br|sub|sup|kbd|mark|u|b|i|em|strong|s|del|ins|small|details|summary))\s*\/?&gt;/gi;

const purify = DOMPurify(window);
purify.setConfig({
  ALLOWED_TAGS: (
    "p br hr h3 h4 h5 h6 ul ol li blockquote pre code em strong del s b i u ins small mark sub sup kbd a " +
    "table thead tbody tr th td details summary #text"
  ).split(" "),
  ALLOWED_ATTR: ["href", "align", "start", "data-language"],
  ADD_URI_SAFE_ATTR: ["align", "start", "data-language"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
});

const escape = (text) =>
  text.replace(/[&<>"']/g, (char) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[char]);

const options = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escape(text).replace(HARMLESS, "<$1>"),
    // Nothing is loaded because a text says so: an image is a link to it.
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || "image")}</a>`,
    // The page has its own first and second headings.
    heading({ tokens, depth }) {
      const tag = `h${Math.min(6, depth + 2)}`;
      return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>`;
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    code: ({ text, lang }) =>
      `<pre data-language="${escape(language(lang))}"><code>${escape(text)}</code></pre>`,
  },
}).defaults;

const language = (lang) => (lang ?? "").match(/^[\w+#.-]{1,24}/)?.[0] ?? "";

/** A text as Markdown. While it is `growing`, what is finished of it stays as it is. */
export const markdown = directive(
  class extends AsyncDirective {
    text = "";
    waits = null; // a text that is shown as it was written until its turn comes
    blocks = [];
    links = {};
    whole = true; // whether all of it was read at once
    spoiled = false; // whether the blocks are not, one after the other, the text
    due = 0; // when it may be made anew: who writes quickly and a lot does not take all of the page's time

    render(text, growing) {
      const now = performance.now();
      if (!growing && (this.waits !== null || this.blocks.length === 0)) {
        if (this.waits === text) return noChange;
        this.waits = text;
        inTurn(this);
        return nodeOf({ plain: text });
      }
      if (text === this.text && (growing || this.whole)) return this.nodes();
      if (growing && now < this.due) {
        setTimeout(changed, this.due - now);
        return noChange;
      }
      this.take(text.replace(/\r\n?/g, "\n"), growing && text.startsWith(this.text));
      this.text = text;
      this.due = performance.now() + 2 * (performance.now() - now);
      return this.nodes();
    }

    /** Its turn has come. */
    turn() {
      const text = this.waits;
      this.waits = null;
      if (!this.isConnected || text === null) return;
      this.take(text.replace(/\r\n?/g, "\n"), false);
      this.text = text;
      this.setValue(this.nodes());
    }

    nodes = () => this.blocks.map((block) => block.node);

    take(text, grown) {
      // Only the last block can still change; what a definition further down means for a link above shows when all is there.
      const kept = grown && !this.spoiled ? this.blocks.slice(0, -1) : [];
      const from = kept.reduce((sum, block) => sum + block.length, 0);
      this.whole = from === 0;
      const known = this.blocks;
      const until = performance.now() + BUDGET;
      let at = from;
      this.blocks = kept;
      for (const block of read(text.slice(from), this.links, until)) {
        const late = performance.now() > until && block.plain === undefined;
        const next = late ? { length: text.length - at, plain: text.slice(at) } : block;
        this.blocks.push(made(next, known[this.blocks.length]));
        at += next.length;
        if (late) break;
      }
      // Where a parser has lost count, it is read from the start each time.
      this.spoiled = at !== text.length;
    }
  },
);

// A page of history is a hundred texts at once, of which few are in sight: the newest ones, which were asked for last. They are made
// before the page is painted, and the others when there is time.
const queue = [];
const AT_ONCE = 20; // milliseconds
const IN_BETWEEN = 8;
const whenIdle = globalThis.requestIdleCallback ?? ((then) => setTimeout(then, 16));

function inTurn(one) {
  if (queue.push(one) === 1) queueMicrotask(() => work(AT_ONCE));
}

function work(time) {
  const until = performance.now() + time;
  while (queue.length > 0 && performance.now() < until) queue.pop().turn();
  if (queue.length > 0) whenIdle(() => work(IN_BETWEEN));
}

/** The blocks of a text: `{length, html}`, or `{length, code, lang}`, or `{length, plain}`. */
function read(text, links, until) {
  const blocks = [];
  let done = 0;
  try {
    for (const token of lexed(text, links, until)) {
      if (performance.now() > until) throw new RangeError("too long");
      // Empty lines and definitions belong to the block before them.
      if (blocks.length > 0 && (token.type === "space" || token.type === "def")) blocks.at(-1).length += token.raw.length;
      else blocks.push(blockOf(token));
      done += token.raw.length;
    }
  } catch {
    // Too long, or too deep for a parser that calls itself: the rest as it was written.
    blocks.push({ length: text.length - done, plain: text.slice(done) });
  }
  return blocks;
}

function blockOf(token) {
  const { raw, type } = token;
  if (type === "code") return { length: raw.length, code: token.text, lang: language(token.lang) };
  return { length: raw.length, html: Parser.parse([token], options) };
}

function lexed(text, links, until) {
  if (DEEPEST_QUOTE.test(text)) throw new RangeError("too deep");
  const lexer = new Lexer(options);
  Object.assign(lexer.tokens.links, links);
  lexer.blockTokens(text, lexer.tokens);
  for (const { src, tokens } of lexer.inlineQueue) {
    if (src.length > LONGEST_INLINE || performance.now() > until) tokens.push({ type: "text", raw: src, text: src });
    else lexer.inlineTokens(src, tokens);
  }
  Object.assign(links, lexer.tokens.links);
  return lexer.tokens;
}

/** A block with its node: the one that was there if it says the same, or can be made to. */
function made(block, known) {
  if (known !== undefined) {
    if (block.html !== undefined && block.html === known.html) return { ...block, node: known.node };
    if (block.plain !== undefined && block.plain === known.plain) return { ...block, node: known.node };
    if (block.code !== undefined && known.code !== undefined && block.lang === known.lang) return { ...block, node: codeGrown(known.node, block.code) };
  }
  return { ...block, node: nodeOf(block) };
}

function nodeOf({ html, code, lang, plain }) {
  if (code !== undefined) return codeBox(code, lang);
  const node = document.createElement("div");
  node.className = plain !== undefined ? "block plain" : /^<h/.test(html) ? "block title" : "block";
  node.dir = "auto";
  if (plain !== undefined) node.textContent = plain;
  else node.append(finished(purify.sanitize(html)));
  return node;
}

/** What only the page may add to a text: code that can be copied, tables that scroll, links that open beside and tell nobody. */
function finished(fragment) {
  for (const pre of fragment.querySelectorAll("pre")) {
    pre.replaceWith(codeBox(pre.textContent.replace(/\n$/, ""), language(pre.dataset.language)));
  }
  for (const table of fragment.querySelectorAll("table")) {
    const box = document.createElement("div");
    box.className = "table";
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "Table");
    table.replaceWith(box);
    box.append(table);
  }
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) continue;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  return fragment;
}

function codeBox(text, lang) {
  const box = document.createElement("div");
  box.className = "code";
  const bar = document.createElement("div");
  bar.className = "code-bar";
  const label = document.createElement("span");
  label.textContent = lang;
  const code = document.createElement("code");
  code.textContent = text;
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  pre.setAttribute("role", "group");
  pre.setAttribute("aria-label", lang === "" ? "Code" : `Code, ${lang}`);
  pre.append(code);
  bar.append(label, copyButton(() => code.textContent, "Copy code"));
  box.append(bar, pre);
  return box;
}

function codeGrown(box, text) {
  const node = box.querySelector("code").firstChild;
  if (node === null) box.querySelector("code").textContent = text;
  else if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
  return box;
}
