// The server: requests with a key where one is wanted, errors in one line, and answers piece by piece.
import { ask } from "./elements.js";
import { word } from "./words.js";

const KEY = "glm-export.key";

/** What the server refused, or that it is not there. */
export class ServerError extends Error {}

let asking = null;

/** Ask for the key once, however many requests want it. */
function askKey(refused) {
  asking ??= ask({
    title: word("key-title"), text: word(refused ? "key-refused" : "key-text"), type: "password",
    accept: word("key-accept"),
  }).finally(() => {
    asking = null;
  });
  return asking;
}

async function refusal(response) {
  try {
    const { error } = await response.json();
    return new ServerError(error.message);
  } catch {
    return new ServerError(word("failed", response.status));
  }
}

async function send(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { headers, signal, method: body === undefined ? "GET" : "POST" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  try {
    return [await fetch(path, options), key];
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(word("unreachable"));
  }
}

/** A response that is all right; the key is asked for until one is. A `body` is posted. */
export async function request(path, body, signal) {
  for (;;) {
    const [response, used] = await send(path, body, signal);
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    // Another request may have been given one meanwhile.
    if (used !== sessionStorage.getItem(KEY)) continue;
    const given = await askKey(Boolean(used));
    if (!given) throw new ServerError(word("no-key"));
    if (/[^\x21-\x7e]/.test(given)) continue;
    sessionStorage.setItem(KEY, given);
  }
}

/** Objects of a stream as they come, until the server says it is done. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(word("unreachable"));
    }
    if (read.done) return;
    held += read.value;
    const whole = held.split("\n\n");
    held = whole.pop();
    for (const one of whole) {
      if (!one.startsWith("data: ")) continue;
      const text = one.slice(6);
      if (text === "[DONE]") return;
      const found = parsed(text);
      if (found.error) throw new ServerError(found.error.message);
      yield found;
    }
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new ServerError(word("unreadable"));
  }
}
