// What else could have been written: on hover, on focus, and along the words with the arrow keys.
import { by, make } from "./elements.js";

const PIECES = new WeakMap();
const SHARE_OF_UNSURE = 0.5;

const percent = (share) => (share >= 0.9995 ? "100 %" : share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const visible = (token) => token.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";

/** The element of a piece that was written; the first of its text is reached by the tab key, the others from there. */
export function wordElement(piece, first) {
  const element = make("span", { className: "word", tabIndex: first ? 0 : -1 }, piece.text);
  if (piece.tokens.some((token) => Math.exp(token.logprob) < SHARE_OF_UNSURE)) element.classList.add("unsure");
  PIECES.set(element, piece);
  return element;
}

function rows(token) {
  const others = token.top.some(([text]) => text === token.token) ? token.top : [[token.token, token.logprob], ...token.top];
  let chosen = false;
  return others.map(([text, logprob]) => {
    const share = Math.exp(logprob);
    const bar = make("span", { className: "bar", "aria-hidden": "true" });
    bar.style.setProperty("--share", String(share));
    const row = make("tr", {}, make("th", { scope: "row" }, visible(text)), make("td", {}, percent(share)), make("td", {}, bar));
    if (!chosen && text === token.token) {
      row.className = "chosen";
      chosen = true;
    }
    return row;
  });
}

function place(box, element) {
  const at = element.getClientRects()[0] ?? element.getBoundingClientRect();
  const left = Math.min(at.left, window.innerWidth - box.offsetWidth - 8);
  const below = at.bottom + 6;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${below + box.offsetHeight < window.innerHeight ? below : at.top - box.offsetHeight - 6}px`;
}

function show(element) {
  const box = by("alternatives");
  box.replaceChildren(...PIECES.get(element).tokens.map((token) => make("table", {}, make("tbody", {}, ...rows(token)))));
  box.hidden = false;
  place(box, element);
  element.setAttribute("aria-describedby", "alternatives");
}

function hide() {
  by("alternatives").hidden = true;
}

/** Back to the word that has the focus, where one has it and was not left by the escape key. */
function settle() {
  const focused = document.activeElement;
  if (PIECES.has(focused) && !by("alternatives").hidden) show(focused);
  else hide();
}

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };

function step(event) {
  if (event.key === "Escape") hide();
  const delta = STEPS[event.key];
  const from = event.target;
  if (delta === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const all = [...from.closest(".words").querySelectorAll(".word")];
  const to = all[Math.max(0, Math.min(all.length - 1, all.indexOf(from) + delta))];
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

/** Watch the words within an element. */
export function watchWords(root) {
  const listen = (name, then) => root.addEventListener(name, (event) => {
    if (PIECES.has(event.target)) then(event);
  });
  listen("mouseover", (event) => show(event.target));
  listen("mouseout", settle);
  listen("focusin", (event) => show(event.target));
  listen("focusout", hide);
  listen("keydown", step);
  by("transcript").addEventListener("scroll", settle, { passive: true });
}
