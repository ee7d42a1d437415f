"""Whether a row answers in a batch as it does alone: beside outliers, rows of other lengths, in any place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.proof.cases import random_prompt
from glm_export.proof.compare import TOLERANCES
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession
from glm_export.spec.batch_invariance import BatchInvariance

ROW_TOKENS, NEIGHBOUR_TOKENS = 7, (3, 12, 2)
"""Of the prompts: the row that is watched, and those beside it."""
STEPS = 3
AMPLIFIED = 1000
"""What rounding of activations may make of last bits, in units of the tolerance of floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanyReport:
    """How far a row's logits moved when others stood beside it, and what the program claims of that.

    ``difference``: the largest, as a share of the row's largest logit. ``tolerance``: what last bits may come to, in
    those units.
    """

    claimed: BatchInvariance
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is as claimed; of a program that claims nothing, anything is."""
        allowed = {BatchInvariance.EXACT: 0.0, BatchInvariance.CLOSE: self.tolerance}
        return self.difference <= allowed.get(self.claimed, np.inf)

    @property
    def advice(self) -> str:
        """What to do where it is not as claimed."""
        return (
            f"a row's logits should be {self.claimed.value} in any company, found {self.difference:.1e} of the largest "
            "apart; run rows one at a time, or export with another recipe (int8-token for 8-bit products)"
        )

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self) | {"claimed": self.claimed.value, "passed": self.passed}


def outlier_token(reference: TorchSession) -> int:
    """The token whose embedding has the largest value of all: what rounds its neighbours worst."""
    return int(reference.model.embedding.weight.abs().amax(dim=1).argmax())


def measure_company(session: Session, outlier: int) -> CompanyReport | None:
    """Decode a row alone, then first and last in a batch whose other rows read an outlier at every step.

    Prompts are read one by one, so that what differs is the steps.

    Returns:
        None where the session takes no batch, or holds too few tokens for these.
    """
    rows, random = 1 + len(NEIGHBOUR_TOKENS), np.random.default_rng(2)
    config, needed = session.config, max(NEIGHBOUR_TOKENS) + STEPS + session.config.prefix_length
    if min(session.max_rows or rows, rows) < rows or min(session.capacity or needed, config.max_columns) < needed:
        return None
    row, *neighbours = (random_prompt(random, length, config) for length in (ROW_TOKENS, *NEIGHBOUR_TOKENS))
    tokens = [int(token) for token in random.integers(0, config.vocab_size, STEPS)]
    alone = _decoded(session, [row], 0, tokens, outlier)
    first, last = ([row, *neighbours], 0), ([*neighbours, row], len(neighbours))
    company = (_decoded(session, prompts, place, tokens, outlier) for prompts, place in (first, last))
    apart = max(float(np.abs(found - alone).max()) for found in company)
    return CompanyReport(
        claimed=session.batch_invariance,
        difference=apart / float(np.abs(alone).max()),
        tolerance=AMPLIFIED * TOLERANCES[session.describe().dtype],
    )


def _decoded(
    session: Session, prompts: Sequence[Prompt], place: int, tokens: Sequence[int], outlier: int
) -> NDArray[np.float32]:
    """Logits of the row in that place, ``[STEPS, V]``."""
    with session.exclusive():
        feeds: Feeds = session.feeds(prompts[:1])
        session.prefill(feeds)
        for prompt in prompts[1:]:
            feeds, _ = session.join(feeds, session.feeds([prompt]))
        found = []
        for token in tokens:
            ids = [outlier] * len(prompts)
            ids[place] = token
            feeds = feeds.next_step(ids, session.last_position(feeds))
            found.append(session.decode(feeds)[place, -1].copy())
    return np.stack(found)
