"""The embedded model: a small ChatGLM2 that knows 313 Tang poems by heart (``examples/train_poems.py``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glm_export.generation import Stopping, generate_ids
from glm_export.sessions import Session

DEMO = "demo"
EMBEDDED = Path(__file__).parent / "embedded"
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Poem:
    """A poem as the model learnt it."""

    title: str
    author: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """How many next lines a session recites exactly, given each poem's first line."""

    exact: int
    total: int

    def __str__(self) -> str:
        return f"{self.exact} of {self.total}"


def demo_folder() -> Path:
    """The embedded checkpoint, in ChatGLM2's published layout."""
    return EMBEDDED / "chatglm2"


def poems() -> list[Poem]:
    """The corpus: public-domain texts of the 7th to 10th century."""
    rows = map(json.loads, (EMBEDDED / "tang_poems.jsonl").read_text(encoding="utf-8").splitlines())
    return [Poem(title=row["title"], author=row["author"], lines=tuple(row["lines"])) for row in rows]


def recall(session: Session, known: Sequence[Poem]) -> Recall:
    """Give each poem's first line, greedily generate, and compare the next line exactly.

    Args:
        session: of the embedded model.
        known: poems; those of one line are passed over.
    """
    asked = [poem for poem in known if len(poem.lines) > 1]
    tokenizer = session.tokenizer
    exact = 0
    for start in range(0, len(asked), BATCH):
        group = asked[start : start + BATCH]
        longest = max(len(tokenizer.encode_plain(poem.lines[1])) for poem in group)
        stopping = Stopping(max_new_tokens=longest + 1, stop_ids=frozenset(session.config.eos_token_ids))
        rows = generate_ids(session, [tokenizer.encode(poem.lines[0]) for poem in group], stopping=stopping)
        for poem, row in zip(group, rows, strict=True):
            exact += tokenizer.decode(row.ids).strip().split("\n")[0] == poem.lines[1]
    return Recall(exact=exact, total=len(asked))
