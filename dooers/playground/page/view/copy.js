// Text into the clipboard, and the button for it where there is no template.

import { say } from "../actions.js";

/** Copy a text and say so. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch {
    // Only a page that came by https, or from this machine, may use the clipboard.
    say("The browser does not let this page copy: select the text and copy it by hand", "bad");
  }
}

/** A button outside of templates; `text` is asked when it is pressed. */
export function copyButton(text, label) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.setAttribute("aria-label", label);
  button.addEventListener("click", () => copy(text()));
  return button;
}
