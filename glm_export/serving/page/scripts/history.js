// The list of conversations: opened, renamed, deleted.
import { ask, by, iconButton, make } from "./elements.js";
import { conversations, forget, keep } from "./store.js";
import { word } from "./words.js";

/** What a conversation is called. */
export const titleOf = (conversation) => conversation.title || word("untitled");

async function rename(conversation, changed) {
  const title = await ask({ title: word("rename-title"), type: "text", value: titleOf(conversation) });
  if (!title) return;
  conversation.title = title;
  keep(conversation);
  changed();
}

async function remove(conversation, removed) {
  const yes = await ask({ title: word("delete-title"), text: titleOf(conversation), accept: word("delete-accept") });
  if (!yes) return;
  forget(conversation);
  removed(conversation);
}

/** Show the list. `live`: those the page works on, the open one first; `actions`: open, changed, removed. */
export function showHistory(live, actions) {
  const items = conversations().map((kept) => {
    const conversation = live.find((one) => one.id === kept.id) ?? kept;
    const title = titleOf(conversation);
    const open = make("button", { type: "button", className: "title", onclick: () => actions.open(conversation) }, title);
    open.title = title;
    if (conversation === live[0]) open.setAttribute("aria-current", "true");
    return make("li", {}, open,
      iconButton("pen", word("rename", title), () => rename(conversation, actions.changed)),
      iconButton("bin", word("delete", title), () => remove(conversation, actions.removed)));
  });
  by("conversations").replaceChildren(...items);
}
