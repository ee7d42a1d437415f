// Elements, and the one dialog. Text is only ever set as text.
import { word } from "./words.js";

/** The element with an id. */
export const by = (id) => document.getElementById(id);

/** An element: properties, then children; texts among them become text. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** A button with one of the document's icons, called by a label. */
export function iconButton(icon, label, onclick) {
  const drawing = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${icon}`);
  drawing.setAttribute("aria-hidden", "true");
  drawing.append(use);
  return make("button", { type: "button", className: "icon", title: label, "aria-label": label, onclick }, drawing);
}

/** A button that says what it does. */
export function textButton(label, onclick) {
  return make("button", { type: "button", className: "quiet", onclick }, label);
}

/** Say something to those who listen. */
export function announce(text) {
  by("status").textContent = text;
}

/** One line that says what went wrong; empty takes it away. */
export function showError(text) {
  by("error").hidden = !text;
  by("error-text").textContent = text.replace(/\s+/g, " ");
  by("error-text").title = text;
}

/**
 * Ask in the dialog. `type`: of the field; without one it is a yes or no.
 * Resolves to the text, true for yes, or null where it was left.
 */
export function ask({ title, text = "", type = null, value = "", accept }) {
  const dialog = by("dialog");
  const field = by("dialog-value");
  by("dialog-title").textContent = title;
  by("dialog-text").textContent = text;
  by("dialog-text").hidden = !text;
  by("dialog-accept").textContent = accept ?? word("save");
  field.hidden = type === null;
  field.type = type ?? "text";
  field.value = value;
  return new Promise((resolve) => {
    let answer = null;
    dialog.firstElementChild.onsubmit = (event) => {
      event.preventDefault();
      answer = type === null ? true : field.value.trim();
      dialog.close();
    };
    by("dialog-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      field.value = "";
      resolve(answer);
    };
    dialog.showModal();
    if (type !== null) field.select();
  });
}
