"""The shapes a row of a data set can have, told by its keys.

Sources: tatsu-lab/stanford_alpaca (``instruction``); databricks/dolly (``context``, ``response``); ShareGPT
(``conversations`` of ``from`` and ``value``); ``finetune_demo`` of THUDM/ChatGLM3 (``conversations``, ``tools``) and of
THUDM/GLM-4 (``messages``, ``tools`` in the system message); ``ptuning`` of THUDM/ChatGLM2-6B (``content`` and
``summary`` of ADGEN, ``prompt`` and ``response`` with ``history``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glm_export.calibration.corpus.turns import conversation, string_field
from glm_export.errors import InputError
from glm_export.tokenizers.chat import Message

MESSAGES = ("messages", "conversations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, what may stand below it, and the reply: the keys of the three; ``below`` may be missing or empty."""

    asked: str
    below: str | None
    reply: str

    def messages(self, row: dict[str, Any]) -> list[Message]:
        """The row as a conversation that ends with the reply; ``system`` and ``history`` go before."""
        asked = string_field(row[self.asked], self.asked)
        below = row.get(self.below) if self.below else None
        if below not in (None, ""):
            asked = f"{asked}\n{string_field(below, str(self.below))}"
        turns = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        for question, reply in _history(row.get("history")):
            turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": row[self.reply]}]
        return conversation(turns, reply=self.reply)


QUESTIONS = (
    Question(asked="instruction", below="input", reply="output"),
    Question(asked="instruction", below="context", reply="response"),
    Question(asked="prompt", below=None, reply="response"),
    Question(asked="content", below=None, reply="summary"),
)
COMPLETION = ("prompt", "completion")
SHAPES: dict[tuple[str, ...], Question | None] = {
    ("text",): None,
    ("input_ids",): None,
    ("lines",): None,
    COMPLETION: None,
    **{(key,): None for key in MESSAGES},
    **{(question.asked, question.reply): question for question in QUESTIONS},
}
"""The keys that make a shape. Others (``id``, ``title`` …) are not read."""
KNOWN = ", ".join(" + ".join(keys) for keys in SHAPES)


def shape_of(row: dict[str, Any]) -> tuple[str, ...]:
    """The keys of a row's shape: of several that fit, the one that explains most keys, as alpaca's beside ``text``.

    Raises:
        InputError: none fits, or two equally well.
    """
    fitting = [keys for keys in SHAPES if set(keys) <= row.keys()]
    best = [keys for keys in fitting if len(keys) == max(map(len, fitting))]
    if len(best) == 1:
        return best[0]
    found = f"several ({', '.join(' + '.join(keys) for keys in best)})" if best else "none"
    keys = ", ".join(map(str, row))[:120] or "(no keys)"
    raise InputError(f"one of the shapes {KNOWN} is expected, found {found} in the keys {keys}; rename or drop keys")


def messages_of(row: dict[str, Any], shape: tuple[str, ...]) -> list[Message]:
    """A row of :data:`MESSAGES` or of :data:`QUESTIONS` as one conversation.

    Raises:
        InputError: a turn is not what the shape promises.
    """
    question = SHAPES[shape]
    if question is not None:
        return question.messages(row)
    (name,) = shape
    return conversation(row[name], name=name, system=row.get("system"))


def _history(pairs: Any) -> Iterator[tuple[Any, Any]]:
    if pairs is None:
        return iter(())
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise InputError("history should be a list of pairs of question and reply; rewrite the row")
    return iter(pairs)
