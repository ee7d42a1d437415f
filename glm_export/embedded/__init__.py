"""What comes along: a ChatGLM2 that knows 313 Tang poems by heart, a GLM that fills blanks, and texts.

Made by ``examples/train_poems.py`` and ``examples/train_infilling.py``. Imports nothing of ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

EMBEDDED = Path(__file__).parent
DEMO, DEMO_GLM = "demo", "demo-glm"
FOLDERS = {DEMO: EMBEDDED / "chatglm2", DEMO_GLM: EMBEDDED / "glm"}
"""What stands for an embedded checkpoint, where a checkpoint is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Poem:
    """A poem as the model learnt it."""

    title: str
    author: str
    lines: tuple[str, ...]


def poems() -> list[Poem]:
    """The corpus: public-domain texts of the 7th to 10th century."""
    rows = map(json.loads, (EMBEDDED / "tang_poems.jsonl").read_text(encoding="utf-8").splitlines())
    return [Poem(title=row["title"], author=row["author"], lines=tuple(row["lines"])) for row in rows]
