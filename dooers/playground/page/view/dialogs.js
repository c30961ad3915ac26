// Questions that are asked in between: one at a time, in the browser's own modal dialog.

import { judge, remove, rename } from "../actions.js";
import { changed, state as now } from "../store.js";
import { ref } from "../vendor/lit-html/directives/ref.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

/** Ask something: `{kind: "rename"|"delete", thread}` or `{kind: "feedback", event, feedback}`. */
export function ask(dialog) {
  now.dialog = dialog;
  changed();
}

const close = () => ask(null);

const KINDS = {
  rename: {
    title: () => "Rename conversation",
    fields: ({ thread }) => field("Title", "title", thread.title ?? ""),
    yes: "Rename",
    done: ({ thread }, form) => rename(thread.id, form.get("title").trim() || null),
  },
  delete: {
    title: () => "Delete conversation?",
    fields: ({ thread }) => html`<p>“${thread.title || "Untitled conversation"}” and everything in it will be gone, for everybody.</p>`,
    yes: "Delete",
    danger: true,
    done: ({ thread }) => remove(thread.id),
  },
  feedback: {
    title: ({ feedback }) => (feedback === "like" ? "What was good?" : "What was wrong?"),
    fields: () => field("Reason", "reason", "", "Optional; goes to the worker's analytics"),
    yes: "Send feedback",
    done: ({ event, feedback }, form) => judge(event.id, feedback, form.get("reason").trim()),
  },
};

export function dialogs({ dialog }) {
  if (dialog === null) return nothing;
  const kind = KINDS[dialog.kind];
  return html`<dialog aria-labelledby="asked" ${ref(show)} @close=${close} @click=${(event) => event.target.matches("dialog") && close()}>
    <form method="dialog" @submit=${(event) => submit(event, kind, dialog)}>
      <h2 id="asked">${kind.title(dialog)}</h2>
      ${kind.fields(dialog)}
      <div class="choices">
        <button type="button" @click=${close}>Cancel</button>
        <button type="submit" class=${kind.danger ? "danger" : "primary"}>${kind.yes}</button>
      </div>
    </form>
  </dialog>`;
}

const field = (label, name, value, help = "") => html`<label class="field">
  <span>${label}</span>
  <input name=${name} .value=${value} maxlength="200" autocomplete="off" autofocus />
  ${help === "" ? nothing : html`<small>${help}</small>`}
</label>`;

function show(element) {
  // It is made before it is put into the page, and only there it may be shown.
  queueMicrotask(() => element?.isConnected && !element.open && element.showModal());
}

function submit(event, kind, dialog) {
  event.preventDefault();
  kind.done(dialog, new FormData(event.target));
  close();
}
