// One message: what somebody said, what was answered, or what went wrong.

import { send } from "../actions.js";
import { asked } from "../model.js";
import { state as now } from "../store.js";
import { seconds } from "../transcript.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { copy } from "./copy.js";
import { ask } from "./dialogs.js";
import { icon } from "./icons.js";
import { markdown } from "./markdown.js";
import { part } from "./parts.js";
import { clock, moment } from "./times.js";
import { tool } from "./tool.js";

/** An item of the transcript; `opinion` is what was thought of it here. */
export function message(item, opinion) {
  if (item.kind === "user") return said(item);
  if (item.kind === "system") return notice(item);
  if (item.kind === "tool") return html`${item.head ? name(item) : nothing}${tool(item)}${end(item)}`;
  return answer(item, opinion);
}

const textOf = ({ content }) => content.map((one) => one.text).filter((text) => typeof text === "string").join("\n\n");

/** What a person said: theirs on the right, that of others with their name. */
function said(item) {
  const { event, head } = item;
  const mine = (event.user_id ?? event.user?.user_id) === now.identity.user_id;
  const who = event.user_name || event.user?.user_name || event.user_id || "Somebody";
  return html`<article class="message user ${mine ? "mine" : "theirs"}" aria-label=${mine ? "You" : who}>
    ${!mine && head ? html`<p class="who">${who}</p>` : nothing} ${bubble(event.content, event.id)}
    <div class="under">${when(event)}${end(item)}</div>
  </article>`;
}

/** The content of a person's message, as they wrote it. */
export const bubble = (content, key) =>
  content.map((one, at) =>
    one.type === "text" ? html`<div class="bubble" dir="auto">${one.text}</div>` : part(one, `${key} ${at}`),
  );

function answer(item, opinion) {
  const { event, growing, head, running } = item;
  const written = growing !== undefined;
  const parts = written ? [{ type: "text", text: growing }] : event.content;
  return html`${head ? name(item) : nothing}
    <article class="message assistant" aria-label=${event.author || now.config.assistant_name} aria-busy=${written ? "true" : nothing}>
      ${parts.map((one, at) =>
        one.type === "text" ? html`<div class="markdown">${markdown(one.text, written)}</div>` : part(one, `${event.id} ${at}`),
      )}
      ${event.data?.incomplete ? html`<p class="incomplete small">Incomplete: it was stopped before its end</p>` : nothing}
      ${written || running ? nothing : under(item, opinion)}
    </article>`;
}

const name = ({ event }) => html`<p class="who">${event.author || now.config.assistant_name}</p>`;

function under(item, opinion) {
  const { event } = item;
  const text = textOf(event);
  return html`<div class="under">
    ${end(item)}
    <div class="acts ${opinion === undefined ? "" : "judged"}" role="group" aria-label="This answer">
      ${act("up", "Like", () => judge(event, "like"), opinion === "like")}
      ${act("down", "Dislike", () => judge(event, "dislike"), opinion === "dislike")} ${act("retry", "Retry", () => again(event))}
      ${text === "" ? nothing : act("copy", "Copy", () => copy(text))}
    </div>
    ${when(event)}
  </div>`;
}

const when = ({ created_at: at }) => html`<time datetime=${at} title=${moment(at)}>${clock(at)}</time>`;

const act = (glyph, label, done, pressed) => html`<button
  type="button"
  class="icon small-icon"
  aria-label=${label}
  title=${label}
  aria-pressed=${pressed === undefined ? nothing : pressed}
  @click=${done}
>
  ${icon(glyph)}
</button>`;

const judge = (event, feedback) => ask({ kind: "feedback", event, feedback });

/** Say again what this answers. */
function again(event) {
  const question = asked(now.talks.get(event.thread_id), event);
  if (question !== undefined) send(question.content);
}

/** What the worker itself has to say: mostly that something went wrong. */
function notice(item) {
  const { event } = item;
  const bad = event.data?.error === true;
  return html`<article class="message notice ${bad ? "bad" : ""}" aria-label=${bad ? "Error" : "Notice"}>
    <p>${textOf(event)}</p>
    ${end(item)}
    ${bad ? html`<button type="button" @click=${() => again(event)}>${icon("retry")}Retry</button>` : nothing}
  </article>`;
}

const ENDS = { canceled: "Stopped after", failed: "Failed after", succeeded: "Took" };

/** How a run ended, where it was seen to. */
function end({ ended }) {
  if (ended === undefined) return nothing;
  const took = Math.max(0.1, seconds(ended));
  return html`<span class="end ${ended.status}">${ENDS[ended.status] ?? ended.status} ${took < 10 ? took.toFixed(1) : Math.round(took)} s</span>`;
}
