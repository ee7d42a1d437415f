// Conversations in this browser. Each is a tree of turns: an edit or a retry is a sibling, nothing is written over.

const PREFIX = "glm-export.conversation.";
const SETTINGS = "glm-export.settings";

const identity = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36)).join("");

/** A conversation nobody has said anything in; it is kept from its first turn on. */
export function newConversation() {
  return { id: identity(), title: "", updated: Date.now(), leaf: null, turns: [] };
}

function readable(text) {
  try {
    const found = JSON.parse(text);
    const turns = Array.isArray(found?.turns) ? found.turns : null;
    const whole = turns?.every((turn) => (
      typeof turn?.id === "string" && [turn.pieces, turn.thought, turn.calls].every(Array.isArray)));
    return whole && typeof found.id === "string" ? found : null;
  } catch {
    return null;
  }
}

/** All that are kept, the last one first; what cannot be read is left out. */
export function conversations() {
  const found = [];
  for (let number = 0; number < localStorage.length; number += 1) {
    const name = localStorage.key(number);
    const conversation = name.startsWith(PREFIX) ? readable(localStorage.getItem(name)) : null;
    if (conversation) found.push(conversation);
  }
  return found.sort((one, other) => other.updated - one.updated);
}

function put(conversation) {
  localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
}

/** Without the alternatives of its words, which take most of the room. */
function lightened(conversation) {
  const light = (pieces) => pieces.map(({ text, filled }) => ({ text, filled }));
  const turns = conversation.turns.map((turn) => ({
    ...turn, pieces: light(turn.pieces), thought: light(turn.thought),
  }));
  return { ...conversation, turns };
}

/** Keep one. Where there is no room, alternatives are given up first; false: there still is none. */
export function keep(conversation) {
  try {
    put(conversation);
    return true;
  } catch {
    try {
      for (const one of conversations()) put(lightened(one));
      put(lightened(conversation));
      return true;
    } catch {
      return false;
    }
  }
}

/** Forget one. */
export function forget(conversation) {
  localStorage.removeItem(PREFIX + conversation.id);
}

/** Add a turn behind another one (null: at the start), and make it the last of what is shown. */
export function addTurn(conversation, parent, values) {
  const turn = {
    id: identity(), parent, role: "user", kind: "chat", pieces: [], thought: [], calls: [], ...values,
  };
  conversation.turns.push(turn);
  conversation.leaf = turn.id;
  conversation.updated = Date.now();
  return turn;
}

/** The turns from the first to the one shown last. */
export function path(conversation, leaf = conversation.leaf) {
  const turns = new Map(conversation.turns.map((turn) => [turn.id, turn]));
  const found = [];
  for (let turn = turns.get(leaf); turn && found.length < turns.size; turn = turns.get(turn.parent)) found.unshift(turn);
  return found;
}

/** Versions of a turn, itself among them. */
export function versions(conversation, turn) {
  return conversation.turns.filter((other) => other.parent === turn.parent && other.role === turn.role);
}

/** Show a version, and what came last behind it. */
export function show(conversation, turn) {
  let leaf = turn;
  for (;;) {
    const next = conversation.turns.findLast((other) => other.parent === leaf.id);
    if (!next) break;
    leaf = next;
  }
  conversation.leaf = leaf.id;
}

/** The text of pieces. */
export const textOf = (pieces) => pieces.map((piece) => piece.text).join("");

/** What was set before; an object. */
export function settings() {
  try {
    const found = JSON.parse(localStorage.getItem(SETTINGS));
    return found && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

/** Keep what is set. */
export function keepSettings(values) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(values));
  } catch {
    // Without room they last as long as the page.
  }
}
