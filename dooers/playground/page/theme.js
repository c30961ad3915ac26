// Light, dark, or as the system has it.

const THEMES = ["system", "light", "dark"];

export const theme = () => localStorage.getItem("dooers.theme") ?? "system";

export function recallTheme() {
  document.documentElement.dataset.theme = theme();
}

export function nextTheme() {
  localStorage.setItem("dooers.theme", THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]);
  recallTheme();
}
