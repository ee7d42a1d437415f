"""What may not be exceeded, as numbers with names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from glm_export.errors import InputError
from glm_export.evaluation.report import QualityReport

LIMITS = {
    "kl": "KL {found} nats a token, {limit} allowed",
    "perplexity": "perplexity {found} times the reference's, {limit} allowed",
    "top1": "top-1 agreement {found}, {limit} expected",
    "top5": "top-5 agreement {found}, {limit} expected",
    "recall": "recall {found} of the reference's, {limit} expected",
}
"""What a budget can limit, and the sentence where the limit is broken."""
SHARES = ("top1", "top5", "recall")
"""Limits to be reached, of 1; the others are not to be exceeded."""
HIGHEST = 1e6  # infinity would allow anything
NUMBER = re.compile(r"\d*\.?\d+([eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What quantizing may cost: names of :data:`LIMITS`, and for each the largest value, or the least share."""

    limits: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, texts: str | Sequence[str]) -> Budget:
        """Read ``kl=0.01,top1=0.99``, or several such texts.

        Raises:
            InputError: no limit, an unknown or repeated name, or a number the name does not take.
        """
        limits: dict[str, float] = {}
        for part in ",".join([texts] if isinstance(texts, str) else texts).split(","):
            name, _, text = (piece.strip() for piece in part.partition("="))
            number = float(text) if NUMBER.fullmatch(text) else math.inf
            if name not in LIMITS or name in limits or number > (1 if name in SHARES else HIGHEST):
                raise InputError(
                    f"a budget is NAME=NUMBER, each name once: kl and perplexity with at most {HIGHEST:g}, "
                    f"{', '.join(SHARES)} with at most 1; found {part.strip()!r}; write for example kl=0.01,top1=0.99"
                )
            limits[name] = number
        return cls(limits=tuple(limits.items()))

    def broken(self, report: QualityReport) -> list[str]:
        """One sentence for each limit that is exceeded; empty where the report keeps to the budget.

        Raises:
            InputError: recall is limited, and there was no task, or none that the reference did exactly.
        """
        sentences = []
        for name, limit in self.limits:
            found = getattr(report, "perplexity_ratio" if name == "perplexity" else name)
            if found is None:
                raise InputError(f"a recall budget needs tasks the reference does, found 0 of {report.tasks}; add some")
            # A figure that is no number keeps no limit.
            if not (found >= limit if name in SHARES else found <= limit):
                # As many digits as tell the two apart.
                digits = next((n for n in range(3, 17) if f"{found:.{n}g}" != f"{limit:.{n}g}"), 17)
                sentences.append(LIMITS[name].format(found=f"{found:.{digits}g}", limit=f"{limit:g}"))
        return sentences
