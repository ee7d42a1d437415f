"""Guesses of what a text goes on with, out of what it says already: prompt lookup.

What stands before the end of a text often stood there before: an edited file, a quotation, a name. The longest end of
the text that is in it a second time says what may follow (Saxena, github.com/apoorvumang/prompt-lookup-decoding, 2023;
Yang et al., arXiv:2304.04487). No second model is asked. Guesses are read with the row's own token in one call and kept
as far as they are what the row writes anyway, so they move no choice, greedy or drawn: of a guess that is certain,
speculative sampling (Leviathan et al., arXiv:2211.17192) accepts as often as the model draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError
from glm_export.spec.signature import RECENT_TOKENS

COLUMN_COST, EXPERTS_COLUMN_COST = 0.08, 0.65
"""What one more token in a step takes, as a share of a step with one; more where it brings experts of its own. Measured
on two cores with VNNI (``benchmarks/sessions/README.md``)."""
PROMPT_FORM_COST = 0.6
"""What a step takes besides where weights of a second form multiply it, as a share of a step with one token: 8 bits
are read for 4. Measured there too."""
MOST_DRAFTS = RECENT_TOKENS - 1
"""Guesses of one row in a step."""
SHORTEST_MATCH, LONGEST_MATCH = 2, 12
"""Tokens that must have stood together before; more than the longest says no more."""
FORGETTING = 0.9
"""What an older guess counts, beside the one after it."""
LONGEST_PAUSE = 64
"""Steps without guesses at most, once they kept failing."""


PACKED_TOKENS = 4 * RECENT_TOKENS
"""Tokens of a call with guesses, over all rows, where its padding is not multiplied."""


def drafts_beside(rows: int, *, packed: bool = False) -> int:
    """Guesses of each row at most where several are written.

    Args:
        rows: that are written.
        packed: padding is not multiplied; else a call is as wide for all rows as for the widest of them.
    """
    tokens = PACKED_TOKENS if packed else RECENT_TOKENS
    return min(max(tokens // max(rows, 1) - 1, 0), MOST_DRAFTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """When it pays to guess.

    ``column_cost``: what one more token in a step takes, as a share of a step with one. ``call_cost``: what a step
    with guesses takes besides, as the same share. ``least``: guesses of a step, if any: fewer would be judged by other
    weights.

    Raises:
        InputError: a cost below 0, or no guess at least.
    """

    column_cost: float = COLUMN_COST
    call_cost: float = 0.0
    least: int = 1

    def __post_init__(self) -> None:
        for cost in (self.column_cost, self.call_cost):
            if not cost >= 0:
                raise InputError(f"a guess should cost 0 or more of a step; found {cost}")
        if not 1 <= self.least <= MOST_DRAFTS:
            raise InputError(f"a step has 1 to {MOST_DRAFTS} guesses, if any; found {self.least}")

    def worth(self, chance: float) -> int:
        """How many guesses make the most tokens for the time of a step; 0 where none pays.

        Args:
            chance: that a guess is right, where those before it are.
        """
        counts = np.arange(MOST_DRAFTS + 1)
        speeds = np.cumsum(chance**counts) / self.cost(counts)
        speeds[1 : self.least] = 0
        return int(np.argmax(speeds))

    def cost(self, guesses: NDArray[np.int64]) -> NDArray[np.float64]:
        """What a step with so many guesses takes, in steps without."""
        return np.asarray(1 + self.column_cost * guesses + self.call_cost * (guesses > 0))


class PromptLookup:
    """Guesses of one text, call after call as it grows; it sees by itself which were right.

    Call it with all of the text's ids. It gives nothing where none is worth its cost: the share of guesses that were
    right, by how long they had matched, says how many to make, and where guesses fail it pauses, twice as long each
    time. Where none seems worth it, what stood there is still compared with what comes, which costs nothing.

    ``offered``, ``accepted``: guesses made so far that were judged, and those of them that were right.
    """

    def __init__(self, options: DraftOptions | None = None) -> None:
        self._options = options or DraftOptions()
        self._ids: NDArray[np.int64] = np.zeros(256, np.int64)
        self._length = 0
        self._guess: tuple[int, ...] = ()
        self._compared: int | None = None
        self._matched = 0
        # By the matched length: guesses that were right, and steps in which one was wrong. At first both by chance.
        self._right = np.ones(LONGEST_MATCH + 1)
        self._wrong = np.ones(LONGEST_MATCH + 1)
        self._pause = self._paused = 0
        self.offered = self.accepted = 0

    def __call__(self, known: Sequence[int], most: int = MOST_DRAFTS) -> list[int]:
        """What may follow.

        Args:
            known: the text's ids, those of the last call first.
            most: guesses wanted at most.
        """
        self._take(known)
        self._guess, self._compared = (), None
        if self._paused:
            self._paused -= 1
            return []
        self._matched, at = self._longest_match()
        if self._matched < SHORTEST_MATCH or most < self._options.least:
            return []
        count = min(self._options.worth(self._chance), most)
        if count:
            self._guess = self._behind(at, max(min(count, self._length - at), self._options.least))
        else:
            self._compared = int(self._ids[at])
        return list(self._guess)

    @property
    def _chance(self) -> float:
        """That a guess is right, as far as it has matched."""
        right, wrong = self._right[self._matched], self._wrong[self._matched]
        return float(right / (right + wrong))

    def _behind(self, at: int, count: int) -> tuple[int, ...]:
        """So many ids from a place on; what ends too early goes on as it began."""
        return tuple(int(self._ids[at + index % (self._length - at)]) for index in range(count))

    def _take(self, known: Sequence[int]) -> None:
        """Read what is new, and judge the last guess by it."""
        new = np.asarray(known[self._length :], np.int64)
        if self._guess and len(new):
            self._judge(new)
        elif self._compared is not None and len(new):
            right = bool(new[0] == self._compared)
            self._count(right, not right)
        end = self._length + len(new)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids[: self._length], np.zeros(2 * end - self._length, np.int64)])
        self._ids[self._length : end] = new
        self._length = end

    def _judge(self, written: NDArray[np.int64]) -> None:
        right = 0
        while right < min(len(self._guess), len(written)) and self._guess[right] == written[right]:
            right += 1
        # Fewer may have been read than were guessed: then none of them was wrong.
        wrong = right < min(len(self._guess), len(written))
        self.offered += min(len(self._guess), len(written))
        self.accepted += right
        self._count(right, wrong)
        if right and right + 1 >= self._options.cost(np.array(len(self._guess))):
            self._pause = 0
        elif wrong:
            self._pause = min(2 * self._pause + 1, LONGEST_PAUSE)
            self._paused = self._pause

    def _count(self, right: int, wrong: bool) -> None:
        for counts, new in ((self._right, right), (self._wrong, wrong)):
            counts[self._matched] = FORGETTING * counts[self._matched] + new

    def _longest_match(self) -> tuple[int, int]:
        """How many of the last tokens stood together before, and what stands behind them, where they did last."""
        ids, end = self._ids, self._length
        if end < SHORTEST_MATCH + 1:
            return 0, 0
        behind = np.flatnonzero(ids[: end - 1] == ids[end - 1]) + 1
        matched, found = 0, behind
        while len(found) and matched < LONGEST_MATCH:
            matched, behind = matched + 1, found
            found = behind[behind > matched]
            found = found[ids[found - matched - 1] == ids[end - matched - 1]]
        return (matched, int(behind[-1])) if matched else (0, 0)
