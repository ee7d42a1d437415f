// Conversations and parameters: beside the text where there is room, over it where there is none. And the theme.
import { by } from "./elements.js";

const NARROW = matchMedia("(max-width: 900px)");
const ROOMY = matchMedia("(min-width: 1180px)");
const NAMES = ["history", "settings"];

function set(name, open) {
  document.body.classList.toggle(`${name}-open`, open);
  by(`open-${name}`).setAttribute("aria-expanded", String(open));
  const over = NARROW.matches && NAMES.some((one) => document.body.classList.contains(`${one}-open`));
  by("shade").hidden = !over;
  document.querySelector("main").inert = over;
}

/** Close what lies over the text. */
export function closeOver() {
  if (NARROW.matches) for (const name of NAMES) set(name, false);
}

function toggle(name) {
  const open = !document.body.classList.contains(`${name}-open`);
  if (open) closeOver();
  set(name, open);
  if (open && NARROW.matches) by(name).querySelector("button, textarea, input").focus();
}

function settle() {
  set("history", !NARROW.matches);
  set("settings", ROOMY.matches);
}

function turnTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const other = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  if (other === system) {
    delete root.dataset.theme;
    localStorage.removeItem("glm-export.theme");
  } else {
    root.dataset.theme = other;
    localStorage.setItem("glm-export.theme", other);
  }
}

/** Let the buttons of the head do what they say. */
export function startPanels() {
  for (const name of NAMES) by(`open-${name}`).onclick = () => toggle(name);
  by("theme").onclick = turnTheme;
  by("shade").onclick = closeOver;
  for (const query of [NARROW, ROOMY]) query.addEventListener("change", settle);
  document.addEventListener("keydown", (event) => {
    const open = NAMES.find((name) => document.body.classList.contains(`${name}-open`));
    if (event.key !== "Escape" || !NARROW.matches || !open || by("dialog").open) return;
    closeOver();
    by(`open-${open}`).focus();
  });
  settle();
}
