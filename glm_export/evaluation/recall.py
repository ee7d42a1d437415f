"""The embedded models: a ChatGLM2 that knows 313 Tang poems by heart, and a GLM that fills their blanked lines.

Made by ``examples/train_poems.py`` and ``examples/train_infilling.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glm_export.embedded import Poem
from glm_export.generation.generate import generate_ids
from glm_export.generation.infilling import blank_context, blank_tokenizer
from glm_export.generation.stopping import Stopping
from glm_export.sessions.session import Session

BATCH = 64
# The GLM learnt the poems of at most this many lines.
MOST_LINES = 8
BLANK = "[sMASK]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """How many lines a session writes exactly."""

    exact: int
    total: int

    def __str__(self) -> str:
        return f"{self.exact} of {self.total}"


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


def blanked(poem: Poem) -> tuple[str, str]:
    """The poem with its middle line blanked, and that line."""
    middle = len(poem.lines) // 2
    text = "".join(BLANK if index == middle else line for index, line in enumerate(poem.lines))
    return text, poem.lines[middle]


def fill_recall(session: Session, known: Sequence[Poem]) -> Recall:
    """Blank each poem's middle line, fill it greedily, and compare exactly.

    Args:
        session: of the embedded GLM.
        known: poems; those too long for it are passed over.
    """
    asked = [blanked(poem) for poem in known if len(poem.lines) <= MOST_LINES]
    tokenizer = blank_tokenizer(session)
    stop_ids = frozenset(tokenizer.stop_ids)
    exact = 0
    for start in range(0, len(asked), BATCH):
        group = asked[start : start + BATCH]
        longest = max(len(tokenizer.encode_plain(line)) for _, line in group)
        prompts = [[*blank_context(tokenizer, text), tokenizer.sop_id] for text, _ in group]
        rows = generate_ids(session, prompts, stopping=Stopping(max_new_tokens=longest + 1, stop_ids=stop_ids))
        exact += sum(tokenizer.decode(row.ids).strip() == line for row, (_, line) in zip(rows, group, strict=True))
    return Recall(exact=exact, total=len(asked))
