"""Rows of tokens, what is counted in them, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glm_export.inputs.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Something a model either writes exactly or does not.

    ``prompt``: what is given, for prefix families up to ``<sop>``. ``completion``: the text expected next.
    ``longest``: how many tokens it may be written in, those of the completion and one for its end.
    """

    prompt: Prompt
    completion: str
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row the model reads.

    ``prompt``: all its ids. ``counted_from``: index of the first id that is text to be predicted, from the logits one
    place before; equal to the number of ids where nothing is (a chat of a prefix family ends in ``<sop>``).
    ``task``: for poems, and for a prompt with its completion.
    """

    prompt: Prompt
    counted_from: int
    task: Task | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Samples in the order of the file, and their provenance.

    ``origin`` and ``licence`` are "not stated" where no ``<file name>.source.json`` says them. ``sha256``: hexadecimal,
    of the file's bytes; of an embedded set, of its files' bytes one after the other.
    """

    name: str
    origin: str
    licence: str
    sha256: str
    samples: tuple[Sample, ...]

    @property
    def tokens(self) -> int:
        """Ids of all samples together."""
        return sum(len(sample.prompt.ids) for sample in self.samples)

    def to_json(self) -> dict[str, Any]:
        """Provenance as plain values; ``samples`` and ``tokens`` are counts."""
        named = {name: getattr(self, name) for name in ("name", "origin", "licence", "sha256")}
        return named | {"samples": len(self.samples), "tokens": self.tokens}
