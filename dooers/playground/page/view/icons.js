// The icons, drawn on a grid of 24 by our own hand; their names are said by what holds them.

import { html, svg } from "../vendor/lit-html/lit-html.js";

const PATHS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  search: "M10.500 4a6.500 6.500 0 1 0 0 13a6.500 6.500 0 0 0 0-13zM15.500 15.500L20 20",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  clip: "M8 12.500l6-6a3 3 0 0 1 4.300 4.300l-8 8a5 5 0 0 1-7.100-7.100l7.800-7.700",
  up: "M7 11v8H4v-8zM7 11l4-7a2.200 2.200 0 0 1 2 2.800L12.500 10H18a2 2 0 0 1 2 2.400l-1.200 5A2 2 0 0 1 16.800 19H7",
  down: "M7 13V5H4v8zM7 13l4 7a2.200 2.200 0 0 0 2-2.800L12.500 14H18a2 2 0 0 0 2-2.400l-1.200-5A2 2 0 0 0 16.800 5H7",
  retry: "M19 12a7 7 0 1 1-2.200-5.100M19 4v4h-4",
  copy: "M9 9h10v11H9zM6 15H5V4h10v2",
  tool: "M14.500 6.500a4 4 0 0 0-5.200 5.200L4 17l3 3 5.300-5.300a4 4 0 0 0 5.200-5.200L15 12l-3-3z",
  file: "M7 3h7l4 4v14H7zM14 3v4h4",
  image: "M4 5h16v14H4zM8.500 10.500h.01M5 18l5-5 3 3 3-3 3 3",
  arrow: "M12 5v14M6 13l6 6 6-6",
  fold: "M9 6l6 6-6 6",
  pause: "M9 6v12M15 6v12",
  play: "M8 6l10 6-10 6z",
  clear: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  settings: "M5 7h8M17 7h2M5 12h2M11 12h8M5 17h6M15 17h4M13 5v4M7 10v4M11 15v4",
  analytics: "M5 19V11M10 19V5M15 19v-6M20 19V8",
  frames: "M8 7l-4 5 4 5M16 7l4 5-4 5M13.500 5l-3 14",
  identity: "M12 4a4 4 0 1 0 0 8a4 4 0 0 0 0-8zM5 20a7 7 0 0 1 14 0",
  "theme-system": "M4 5h16v11H4zM9 20h6M12 16v4",
  "theme-light": "M12 8a4 4 0 1 0 0 8a4 4 0 0 0 0-8zM12 3v2M12 19v2M3 12h2M19 12h2M5.600 5.600L7 7M17 17l1.400 1.400M5.600 18.400L7 17M17 7l1.400-1.400",
  "theme-dark": "M19 14.500A8 8 0 0 1 9.500 5a8 8 0 1 0 9.500 9.500z",
};

export const icon = (name) => html`<svg class="glyph" viewBox="0 0 24 24" aria-hidden="true" focusable="false">${svg`<path d=${PATHS[name] ?? ""} />`}</svg>`;
