// A turn being written: what is sent, and what comes back piece by piece.
import { events, request, ServerError } from "./api.js";
import { path, textOf } from "./store.js";
import { word } from "./words.js";

const TOP = 5;
const BLANK = /(\[[sg]?MASK\])/;

/** A text in pieces, its blanks among them. */
export function piecesWithBlanks(text) {
  return text.split(BLANK).filter(Boolean).map((part) => (BLANK.test(part) ? { text: part, blank: true } : { text: part }));
}

/** Whether a text has a blank. */
export const hasBlank = (text) => BLANK.test(text);

function message(turn) {
  const content = textOf(turn.pieces);
  if (turn.role === "tool") return { role: "tool", content, tool_call_id: turn.answers, name: turn.name };
  if (!turn.calls.length) return { role: turn.role, content };
  const calls = turn.calls.map(({ id, name, arguments: text }) => (
    { id, type: "function", function: { name, arguments: text } }));
  return { role: turn.role, content, tool_calls: calls };
}

function messages(conversation, turn, system) {
  const before = path(conversation, turn.parent).filter((one) => one.kind === "chat").map(message);
  return system ? [{ role: "system", content: system }, ...before] : before;
}

/** When tokens came, as the browser saw them. */
class Pace {
  constructor() {
    this.started = performance.now();
    this.first = null;
    this.last = null;
    this.count = 0;
  }

  tick(tokens) {
    this.last = performance.now();
    this.first ??= this.last;
    this.count += tokens;
  }

  /** Milliseconds to the first token, tokens a second behind it, seconds in all, tokens. */
  stats(usage) {
    const tokens = usage?.completion_tokens ?? this.count;
    const seconds = (this.last - this.first) / 1000;
    return {
      first: this.first === null ? null : this.first - this.started,
      rate: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null,
      seconds: (performance.now() - this.started) / 1000,
      tokens,
      cached: usage?.prompt_tokens_details?.cached_tokens ?? 0,
    };
  }
}

const brief = (number) => Math.round(number * 1e4) / 1e4;
const told = ({ token, logprob, top_logprobs: top }) => (
  { token, logprob: brief(logprob), top: top.map((one) => [one.token, brief(one.logprob)]) });

/** Takes what a stream says into a turn. Tokens whose text is held back go to the piece that brings it. */
class Taking {
  constructor(turn) {
    this.turn = turn;
    this.pending = [];
  }

  take(choice) {
    const { delta, logprobs } = choice;
    this.pending.push(...(logprobs?.content ?? []).map(told));
    if (delta.reasoning_content) this.add(this.turn.thought, delta.reasoning_content);
    if (delta.content) this.add(this.turn.pieces, delta.content);
    for (const call of delta.tool_calls ?? []) this.call(call);
    if (choice.finish_reason) this.turn.reason = choice.finish_reason;
  }

  add(pieces, text) {
    const last = pieces.at(-1);
    if (this.pending.length || !last) pieces.push({ text, tokens: this.pending });
    else last.text += text;
    this.pending = [];
  }

  call({ index, id, function: part }) {
    this.pending = [];
    this.turn.calls[index] ??= { id, name: part.name ?? "", arguments: "" };
    this.turn.calls[index].arguments += part.arguments ?? "";
  }
}

/**
 * Write a turn of a conversation. `values`: of the parameters, `system` and `tools` among them. `changed` is called
 * after each piece. What was written before it was stopped or failed stays in the turn.
 */
export async function chat({ conversation, turn, values, signal, changed }) {
  const { system, tools, alternatives, ...sampling } = values;
  const body = {
    ...sampling, model: turn.model, messages: messages(conversation, turn, system), stream: true,
    stream_options: { include_usage: true },
  };
  if (alternatives) Object.assign(body, { logprobs: true, top_logprobs: TOP });
  if (tools) body.tools = tools;
  const pace = new Pace();
  const taking = new Taking(turn);
  let usage = null;
  try {
    for await (const event of events(await request("v1/chat/completions", body, signal))) {
      usage = event.usage ?? usage;
      for (const choice of event.choices) {
        const { role, content, ...rest } = choice.delta;
        const tokens = choice.logprobs?.content.length ?? 0;
        if (tokens || content || Object.keys(rest).length) pace.tick(alternatives ? tokens : 1);
        taking.take(choice);
      }
      turn.stats = pace.stats(usage);
      changed();
    }
    if (!turn.reason) throw new ServerError(word("broken"));
  } finally {
    turn.stats = pace.stats(usage);
  }
}

/** Fill the blanks of the turn before. */
export async function fill({ conversation, turn, values, signal, changed }) {
  const { system, tools, alternatives, ...sampling } = values;
  const source = textOf(path(conversation, turn.parent).at(-1).pieces);
  const started = performance.now();
  turn.pieces = piecesWithBlanks(source);
  changed();
  const response = await request("v1/infill", { ...sampling, model: turn.model, text: source }, signal);
  const { fills, usage } = await response.json();
  let number = 0;
  turn.pieces = turn.pieces.map((piece) => (piece.blank ? { text: fills[number++] ?? "", filled: true } : piece));
  turn.reason = "stop";
  turn.stats = { seconds: (performance.now() - started) / 1000, tokens: usage.completion_tokens };
  changed();
}
