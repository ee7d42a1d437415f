// A turn as it is shown: its text in pieces, thoughts, calls, what it took, and what can be done with it.
import { wordElement } from "./alternatives.js";
import { make, textButton } from "./elements.js";
import { textOf, versions } from "./store.js";
import { word } from "./words.js";

function pieceElement(piece, first) {
  if (piece.blank) return make("span", { className: "blank", role: "img", "aria-label": word("blank") });
  if (piece.filled) return make("mark", { title: word("filled") }, piece.text);
  if (piece.tokens?.length) return wordElement(piece, first);
  return make("span", {}, piece.text);
}

/** Pieces of text that grow: what is there is left alone, so that focus and selection stay. */
class Words {
  constructor(label, kind) {
    this.element = make("div", { className: `words ${kind}`, role: "group", "aria-label": label, dir: "auto" });
    this.shown = [];
    this.pieces = null;
  }

  update(pieces) {
    // Of pieces that were shown before only the last one grows.
    const first = pieces === this.pieces ? Math.max(0, this.shown.length - 1) : 0;
    this.pieces = pieces;
    for (let number = first; number < pieces.length; number += 1) this.put(pieces[number], number);
  }

  put(piece, number) {
    const old = this.shown[number];
    if (old?.piece === piece) {
      if (!piece.blank && old.element.textContent !== piece.text) old.element.textContent = piece.text;
      return;
    }
    const element = pieceElement(piece, !this.element.querySelector(".word"));
    if (old) old.element.replaceWith(element);
    else this.element.append(element);
    this.shown[number] = { piece, element };
  }
}

function statsText(turn) {
  const { stats, reason } = turn;
  if (!stats) return "";
  const round = (number) => (number >= 100 ? number.toFixed(0) : number.toPrecision(3));
  return [
    stats.first == null ? "" : word("first", Math.round(stats.first)),
    stats.rate == null ? "" : word("rate", round(stats.rate)),
    stats.tokens ? word("tokens", stats.tokens) : "",
    word("seconds", stats.seconds.toFixed(1)),
    stats.cached ? word("cached", stats.cached) : "",
    ["length", "stopped", "error"].includes(reason) ? word(`reason_${reason}`) : "",
  ].filter(Boolean).join(" · ");
}

function callElement(call, answer) {
  const pretty = prettied(call.arguments);
  const box = make("details", { className: "call", open: true },
    make("summary", {}, word("call", call.name)), make("pre", { tabIndex: 0 }, pretty));
  if (answer) {
    const field = make("textarea", { rows: 2, "aria-label": word("result"), placeholder: word("result") });
    const form = make("form", { className: "answer" }, field, make("button", { className: "primary" }, word("send")));
    form.onsubmit = (event) => {
      event.preventDefault();
      answer(call, field.value);
    };
    box.append(form);
  }
  return box;
}

function prettied(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** One turn. `actions`: what its buttons do, each given the turn. */
export class TurnView {
  constructor(conversation, turn, actions) {
    Object.assign(this, { conversation, turn, actions });
    this.thought = new Words(word("thought"), "thoughts");
    this.words = new Words(turn.role === "user" ? word("you") : turn.model ?? word("tool"), "said");
    this.thoughts = make("details", { className: "thought", hidden: true, open: true },
      make("summary", {}, word("thought")), this.thought.element);
    this.calls = make("div", { className: "calls" });
    this.stats = make("span", { className: "stats" });
    this.buttons = make("span", { className: "buttons" });
    const who = turn.role === "user" ? word("you") : turn.role === "tool" ? `${word("tool")} ${turn.name}` : turn.model;
    this.element = make("li", { className: `turn ${turn.role}` },
      make("div", { className: "who" }, who), this.thoughts, this.words.element, this.calls,
      make("div", { className: "foot" }, this.buttons, this.stats));
    this.update(false);
  }

  /** Show what the turn has come to. */
  update(writing) {
    const { turn } = this;
    this.thoughts.hidden = !turn.thought.length;
    this.thoughts.firstElementChild.textContent = word(writing && !turn.pieces.length ? "thinking" : "thought");
    this.thought.update(turn.thought);
    this.words.update(turn.pieces);
    this.words.element.hidden = !turn.pieces.length && !writing;
    this.element.classList.toggle("writing", writing);
    this.element.setAttribute("aria-busy", String(writing));
    const last = this.conversation.leaf === turn.id && !writing;
    this.calls.replaceChildren(...turn.calls.map((call) => callElement(call, last && this.actions.answerCall)));
    this.stats.textContent = statsText(turn);
    this.buttons.replaceChildren(...(writing ? [] : this.offered()));
  }

  offered() {
    const { turn, actions } = this;
    const all = versions(this.conversation, turn);
    const number = all.indexOf(turn);
    const buttons = [];
    if (all.length > 1) {
      const to = (index, label, sign) => {
        const button = textButton(sign, () => actions.show(all[index]));
        button.setAttribute("aria-label", word(label));
        button.disabled = !all[index];
        return button;
      };
      const where = make("span", { className: "version", title: word("version", number + 1, all.length) },
        `${number + 1}/${all.length}`);
      buttons.push(to(number - 1, "earlier", "‹"), where, to(number + 1, "later", "›"));
    }
    buttons.push(textButton(word("edit"), () => this.edit()), textButton(word("retry"), () => actions.retry(turn)));
    if (navigator.clipboard) {
      const copy = textButton(word("copy"), async () => {
        await navigator.clipboard.writeText(textOf(turn.pieces));
        copy.textContent = word("copied");
      });
      buttons.push(copy);
    }
    return buttons;
  }

  /** A field in the place of the text. */
  edit() {
    const { turn, actions } = this;
    const field = make("textarea", {
      value: textOf(turn.pieces), rows: Math.min(12, textOf(turn.pieces).split("\n").length + 1), "aria-label": word("edit"),
    });
    const leave = () => {
      form.replaceWith(this.words.element);
      this.buttons.hidden = false;
      [...this.buttons.children].find((button) => button.textContent === word("edit"))?.focus();
    };
    const form = make("form", { className: "edit" }, field, make("div", { className: "row end" },
      make("button", { type: "button", className: "plain", onclick: leave }, word("cancel")),
      make("button", { className: "primary" }, word(turn.role === "assistant" ? "save" : "save-send"))));
    form.onsubmit = (event) => {
      event.preventDefault();
      actions.edit(turn, field.value);
    };
    field.onkeydown = (event) => {
      if (event.key === "Escape") leave();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    };
    this.words.element.replaceWith(form);
    this.buttons.hidden = true;
    field.focus();
  }
}
