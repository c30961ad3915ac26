// The playground: what is known (model.js), what people do (actions.js), how it looks (view/). Served as it is, without a build.

import { begin, say } from "./actions.js";
import { changed, drawnBy } from "./store.js";
import { recallTheme } from "./theme.js";
import { render } from "./vendor/lit-html/lit-html.js";
import { page } from "./view/page.js";

recallTheme();
const root = document.querySelector("#app");
drawnBy((state) => render(page(state), root));

const response = await fetch(new URL("config.json", import.meta.url));
const config = await response.json();
document.title = `${config.assistant_name} · playground`;
const socket = new URL("../ws", import.meta.url);
socket.protocol = socket.protocol.replace("http", "ws");
begin(config, socket.href);
changed();
// One comes here to write; where that would bring up a keyboard over half of the page, one may look first.
if (matchMedia("(pointer: fine)").matches) requestAnimationFrame(() => document.querySelector("#message")?.focus());

addEventListener("unhandledrejection", ({ reason }) => say(`The page made a mistake: ${reason?.message ?? reason}`, "bad"));
