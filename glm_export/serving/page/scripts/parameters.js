// What is set beside the text: read from the form, kept for the next visit.
import { by } from "./elements.js";
import { keepSettings, settings } from "./store.js";
import { word } from "./words.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const TEXTS = ["system", "tools"];

/** A field that holds what cannot be sent. */
export class ParameterError extends Error {}

const form = () => by("settings").querySelector("form");

/** The parameters as a request has them; what is empty is left out. Raises ParameterError. */
export function parameters() {
  const { elements } = form();
  const found = { alternatives: elements.alternatives.checked };
  for (const name of NUMBERS) {
    const field = elements[name];
    if (!field.checkValidity()) throw new ParameterError(word("bad-value", name));
    if (field.value !== "") found[name] = Number(field.value);
  }
  if (elements.system.value.trim()) found.system = elements.system.value;
  const tools = elements.tools.value.trim();
  if (tools) found.tools = listed(tools);
  return found;
}

function listed(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new ParameterError(word("bad-tools", error.message));
  }
  if (!Array.isArray(found)) throw new ParameterError(word("bad-tools", typeof found));
  return found;
}

/** Fill the form with what was set before, and keep what is set from now on. */
export function startParameters() {
  const kept = settings();
  const { elements } = form();
  elements.alternatives.checked = kept.alternatives !== false;
  for (const name of [...NUMBERS, ...TEXTS]) if (typeof kept[name] === "string") elements[name].value = kept[name];
  form().onsubmit = (event) => event.preventDefault();
  form().oninput = () => {
    const values = { ...settings(), alternatives: elements.alternatives.checked };
    for (const name of [...NUMBERS, ...TEXTS]) values[name] = elements[name].value;
    keepSettings(values);
  };
}
