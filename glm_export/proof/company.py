"""Whether a row answers in a batch as it does alone: beside outliers, rows of other lengths, in any place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.progress import NullProgress, Progress
from glm_export.proof.cases import random_prompt
from glm_export.proof.compare import TOLERANCES
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession
from glm_export.spec.batch_invariance import BatchInvariance

ROW_TOKENS, OUTLIER_TOKENS = (7, 3, 12, 2), 5
"""Of the prompts: rows that are watched, and the one beside them that reads an outlier at every step."""
STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanyReport:
    """How far rows' logits moved when others stood beside them, and what the program claims of that.

    Differences are shares of a row's largest logit. ``difference``: the largest, ``usual``: the median over rows and
    steps. ``tolerance``: what last bits may come to. ``rounding``: what they may come to where activations are rounded
    as they come and one lies on the border between two steps, which is the recipe's own tolerance; 0 where nothing is.
    """

    claimed: BatchInvariance
    difference: float
    usual: float
    tolerance: float
    rounding: float

    @property
    def passed(self) -> bool:
        """Whether it is as claimed; of a program that claims nothing, anything is."""
        if self.claimed is BatchInvariance.EXACT:
            return self.difference == 0
        close = self.usual <= self.tolerance and self.difference <= max(self.tolerance, self.rounding)
        return close or self.claimed is BatchInvariance.NONE

    @property
    def advice(self) -> str:
        """What to do where it is not as claimed."""
        return (
            f"a row's logits should be {self.claimed.value} in any company, found {self.difference:.1e} of the largest "
            f"apart, usually {self.usual:.1e}; run rows one at a time, or export with another recipe (int8-token for "
            "8-bit products)"
        )

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self) | {"claimed": self.claimed.value, "passed": self.passed}


def outlier_token(reference: TorchSession) -> int:
    """The token whose embedding has the largest value of all: what rounds its neighbours worst."""
    return int(reference.model.embedding.weight.abs().amax(dim=1).argmax())


def measure_company(
    session: Session, outlier: int, rounding: float = 0.0, progress: Progress | None = None
) -> CompanyReport | None:
    """Decode rows each alone, then together in two orders, beside one that reads an outlier at every step.

    Prompts are read one by one, so that what differs is the steps.

    Args:
        session: whose program it is.
        outlier: from :func:`outlier_token`.
        rounding: the recipe's tolerance; see :class:`CompanyReport`.
        progress: shows rows that are read and decoded.

    Returns:
        None where the session takes no batch, or holds too few tokens for these.
    """
    rows, random = len(ROW_TOKENS) + 1, np.random.default_rng(2)
    config, needed = session.config, max(ROW_TOKENS) + STEPS + session.config.prefix_length
    if min(session.max_rows or rows, rows) < rows or min(session.capacity or needed, config.max_columns) < needed:
        return None
    prompts = [random_prompt(random, length, config) for length in (*ROW_TOKENS, OUTLIER_TOKENS)]
    tokens_BS = random.integers(0, config.vocab_size, (rows, STEPS))
    tokens_BS[-1] = outlier
    advance = (progress or NullProgress()).task("rows in company", (rows - 1) + 2 * rows)

    def decoded(chosen: list[int]) -> NDArray[np.float32]:
        logits_BSV = _decoded(session, [prompts[row] for row in chosen], tokens_BS[chosen])
        advance(len(chosen))
        return logits_BSV

    alone_BSV = np.concatenate([decoded([row]) for row in range(rows - 1)])
    scale_B1 = np.abs(alone_BSV).max(axis=(1, 2))[:, None]
    apart: list[NDArray[np.float32]] = []
    for order in (list(range(rows)), list(reversed(range(rows)))):
        together_BSV = np.empty((rows, *alone_BSV.shape[1:]), np.float32)
        together_BSV[order] = decoded(order)
        apart.append(np.abs(together_BSV[:-1] - alone_BSV).max(axis=2) / scale_B1)
    return CompanyReport(
        claimed=session.batch_invariance,
        difference=float(np.max(apart)),
        usual=float(np.median(apart)),
        tolerance=TOLERANCES[session.describe().dtype],
        rounding=rounding,
    )


def _decoded(session: Session, prompts: Sequence[Prompt], tokens_BS: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of every row behind each of its tokens, ``[B, S, V]``."""
    with session.exclusive():
        feeds: Feeds = session.feeds(prompts[:1])
        session.prefill(feeds)
        for prompt in prompts[1:]:
            feeds, _ = session.join(feeds, session.feeds([prompt]))
        found = []
        for ids in tokens_BS.T:
            feeds = feeds.next_step(ids.tolist(), session.last_position(feeds))
            found.append(feeds.last_logits(session.decode(feeds)).copy())
    return np.stack(found, axis=1)
