// The page: what is typed becomes a turn, a turn is answered, and every turn may be edited or asked again.
import { watchWords } from "./alternatives.js";
import { request, ServerError } from "./api.js";
import { announce, by, showError } from "./elements.js";
import { showHistory } from "./history.js";
import { closeOver, startPanels } from "./panels.js";
import { ParameterError, parameters, startParameters } from "./parameters.js";
import { addTurn, conversations, keep, keepSettings, newConversation, settings, show, path, textOf } from "./store.js";
import { TurnView } from "./turns.js";
import { translate, word } from "./words.js";
import { chat, fill, hasBlank, piecesWithBlanks } from "./writing.js";

const TITLE_LENGTH = 60;
const KEEP_EVERY_MS = 2000;
const LONGEST_ANNOUNCED = 600;

const state = { models: [], conversation: newConversation(), views: new Map(), running: null };

const modelNow = () => state.models.find((model) => model.id === by("model").value);

/** Blanks are for models that fill them, and what such a model is asked for first. */
const kindNow = () => (modelNow()?.fills_blanks && settings().kind !== "chat" ? "blanks" : "chat");

async function loadModels() {
  const { data } = await (await request("v1/models")).json();
  state.models = data;
  by("model").replaceChildren(...data.map((model) => new Option(model.id, model.id)));
  const wanted = settings().model;
  if (data.some((model) => model.id === wanted)) by("model").value = wanted;
  showKind();
}

/** Errors that may happen, in one line; others are ours, and are for the console too. */
function tell(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof ServerError || error instanceof ParameterError)) console.error(error);
  showError(error.message || String(error));
}

function showKind() {
  const kind = kindNow();
  by("kinds").hidden = !modelNow()?.fills_blanks;
  for (const input of document.querySelectorAll("input[name=kind]")) input.checked = input.value === kind;
  by("insert").hidden = kind !== "blanks";
  by("hint").textContent = word(`hint-${kind}`);
  by("text").placeholder = word(`hint-${kind}`);
  by("send").firstElementChild.textContent = word(kind === "blanks" ? "fill" : "send");
  typed();
}

/** The field grows with its text, and its blanks are seen. */
function typed() {
  const field = by("text");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
  const pieces = kindNow() === "blanks" ? piecesWithBlanks(field.value) : [];
  by("backdrop").replaceChildren(...pieces.map((piece) => {
    const part = document.createElement("span");
    part.textContent = piece.text;
    if (piece.blank) part.className = "blank-name";
    return part;
  }));
  by("backdrop").scrollTop = field.scrollTop;
}

const nearEnd = () => {
  const box = by("transcript");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 80;
};

function toEnd() {
  by("transcript").scrollTop = by("transcript").scrollHeight;
}

function render() {
  const { conversation, running } = state;
  const turns = path(conversation);
  const made = turns.map((turn) => [turn, new TurnView(conversation, turn, actions)]);
  state.views = new Map(made);
  by("turns").replaceChildren(...made.map(([, view]) => view.element));
  by("empty").hidden = turns.length > 0;
  if (running) state.views.get(running.turn)?.update(true);
  by("stop").hidden = !running;
  by("send").hidden = Boolean(running);
  const changed = () => render();
  showHistory([conversation, ...(running ? [running.conversation] : [])], { open, changed, removed });
}

function kept(conversation) {
  if (!keep(conversation)) showError(word("full"));
}

function open(conversation) {
  state.conversation = conversation;
  showError("");
  render();
  closeOver();
  toEnd();
  by("text").focus();
}

async function removed(conversation) {
  if (state.running?.conversation.id === conversation.id) {
    state.running.forgotten = true;
    await stopped();
  }
  if (state.conversation.id === conversation.id) state.conversation = newConversation();
  render();
}

async function stopped() {
  state.running?.controller.abort();
  await state.running?.done;
}

/** Answer a turn of the user's, or of a tool's, with a new version. */
async function answer(conversation, asked) {
  await stopped();
  showError("");
  let values;
  try {
    values = parameters();
    if (!state.models.length) await loadModels();
  } catch (error) {
    tell(error);
    render();
    return;
  }
  const turn = addTurn(conversation, asked.id, { role: "assistant", kind: asked.kind, model: by("model").value });
  const running = { conversation, turn, controller: new AbortController() };
  running.done = write(running, values);
  state.running = running;
  render();
  toEnd();
  announce(word("writing"));
  await running.done;
}

function follow(running) {
  let saved = performance.now();
  return () => {
    const stay = nearEnd();
    state.views.get(running.turn)?.update(true);
    if (stay) toEnd();
    if (performance.now() - saved > KEEP_EVERY_MS && !running.forgotten) {
      kept(running.conversation);
      saved = performance.now();
    }
  };
}

async function write(running, values) {
  const { conversation, turn, controller } = running;
  // Not before the caller has shown the turn.
  await Promise.resolve();
  try {
    const writes = turn.kind === "blanks" ? fill : chat;
    await writes({ conversation, turn, values, signal: controller.signal, changed: follow(running) });
    announce(word("done", textOf(turn.pieces).slice(0, LONGEST_ANNOUNCED)));
  } catch (error) {
    turn.reason = error.name === "AbortError" ? "stopped" : "error";
    tell(error);
  }
  if (turn.reason !== "stop" && (turn.kind === "blanks" || !(turn.pieces.length || turn.thought.length || turn.calls.length))) {
    withdraw(conversation, turn);
  }
  state.running = null;
  if (!running.forgotten) kept(conversation);
  const stay = nearEnd();
  render();
  if (stay) toEnd();
}

/** A turn that came to nothing is none; what was there before it is shown again. */
function withdraw(conversation, turn) {
  conversation.turns = conversation.turns.filter((other) => other !== turn);
  if (conversation.leaf !== turn.id) return;
  const parent = conversation.turns.find((other) => other.id === turn.parent);
  show(conversation, parent);
}

const titleFrom = (turn) => (
  turn.pieces.map((piece) => (piece.blank ? "___" : piece.text)).join("").trim().slice(0, TITLE_LENGTH));

function say(conversation, parent, values) {
  const turn = addTurn(conversation, parent, values);
  if (!conversation.title) conversation.title = titleFrom(turn);
  kept(conversation);
  return turn;
}

async function send() {
  const field = by("text");
  const kind = kindNow();
  const text = field.value;
  if (!text.trim()) return;
  if (kind === "blanks" && !hasBlank(text)) {
    showError(word("no-blank"));
    return;
  }
  if (state.running) {
    showError(word("busy"));
    return;
  }
  const { conversation } = state;
  const pieces = kind === "blanks" ? piecesWithBlanks(text) : [{ text }];
  const turn = say(conversation, conversation.leaf, { role: "user", kind, pieces });
  field.value = "";
  typed();
  await answer(conversation, turn);
}

const actions = {
  async retry(turn) {
    const { conversation } = state;
    const asked = turn.role === "assistant" ? conversation.turns.find((one) => one.id === turn.parent) : turn;
    await answer(conversation, asked);
  },
  async edit(turn, text) {
    await stopped();
    const { conversation } = state;
    const pieces = turn.kind === "blanks" && turn.role === "user" ? piecesWithBlanks(text) : [{ text }];
    const { id, parent, thought, stats, reason, ...same } = turn;
    const edited = say(conversation, parent, { ...same, pieces });
    if (turn.role === "assistant") render();
    else await answer(conversation, edited);
  },
  show(turn) {
    show(state.conversation, turn);
    kept(state.conversation);
    render();
  },
  async answerCall(call, text) {
    const { conversation } = state;
    const values = { role: "tool", kind: "chat", answers: call.id, name: call.name, pieces: [{ text }] };
    await answer(conversation, say(conversation, conversation.leaf, values));
  },
};

function insertBlank(kind) {
  const field = by("text");
  field.setRangeText(kind, field.selectionStart, field.selectionEnd, "end");
  typed();
  field.focus();
}

function startComposer() {
  const field = by("text");
  field.oninput = typed;
  field.onscroll = () => { by("backdrop").scrollTop = field.scrollTop; };
  field.onkeydown = (event) => {
    // Enter that ends the input of a Chinese word is none of ours.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    send();
  };
  by("composer").onsubmit = (event) => {
    event.preventDefault();
    send();
  };
  by("stop").onclick = stopped;
  by("error-close").onclick = () => showError("");
  by("new").onclick = () => open(newConversation());
  by("model").onchange = () => {
    keepSettings({ ...settings(), model: by("model").value });
    showKind();
  };
  for (const input of document.querySelectorAll("input[name=kind]")) {
    input.onchange = () => {
      keepSettings({ ...settings(), kind: input.value });
      showKind();
    };
  }
  for (const button of by("insert").children) button.onclick = () => insertBlank(button.dataset.blank);
  window.addEventListener("resize", typed);
}

function start() {
  translate(document);
  startPanels();
  startParameters();
  startComposer();
  watchWords(by("turns"));
  state.conversation = conversations()[0] ?? state.conversation;
  render();
  showKind();
  toEnd();
  // What another tab keeps is listed here too.
  window.addEventListener("storage", () => { if (!state.running) render(); });
  window.addEventListener("pagehide", () => { if (state.running && !state.running.forgotten) keep(state.running.conversation); });
  loadModels().catch(tell);
}

start();
