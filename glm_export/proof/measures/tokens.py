"""Two recorded runs, token by token: how far predictions are apart, and whether the likeliest changed, by how little.

Shapes: B rows, S new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polygraphy.comparator import RunResults

from glm_export.inputs.call_layout import OwnLengths
from glm_export.spec.signature import INPUT_IDS, LOGITS

Decode = Callable[[int], str | None]
Figures = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenParity:
    """What both sides predict behind one real token; padding has none.

    ``position``: the token's own in its row, counted from 0, past tokens included. ``token``, ``text``: what was read
    there; None where no tokenizer has a text for it. ``kl``: KL(reference || candidate) over the vocabulary, in nats;
    infinite where the candidate gives no numbers. ``expected``, ``found``: the token each side finds likeliest.
    ``rank``: of ``expected`` among the candidate's, 1 the likeliest. A margin is the likeliest token's logit less the
    second's, in the units of logits: what it takes to turn one into the other.
    """

    case: str
    row: int
    position: int
    token: int
    text: str | None
    kl: float
    expected: int
    found: int
    rank: int
    reference_margin: float
    candidate_margin: float | None
    expected_text: str | None = None
    found_text: str | None = None

    @property
    def top1(self) -> bool:
        """Whether both find the same token likeliest."""
        return self.rank == 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"top1": self.top1}


def token_parity(
    results: RunResults, cases: Sequence[tuple[str, dict[str, NDArray[Any]]]], decode: Decode = lambda _: None
) -> tuple[TokenParity, ...]:
    """Compare what two runs predict behind every real token.

    Args:
        results: the reference, the candidate, and others that are not read, one iteration for each case; the reference
            is finite.
        cases: names and canonical inputs of the iterations.
        decode: an id's text, for people.

    Returns:
        Case by case, row by row; of a program that tells the logits of a row's last tokens, those. Nothing where the
        candidate's logits have another shape.
    """
    (_, expected), (_, found) = list(results)[:2]
    rows: list[TokenParity] = []
    for (name, tensors), one, other in zip(cases, expected, found, strict=True):
        reference, candidate = (np.asarray(run[LOGITS]) for run in (one, other))
        if reference.shape == candidate.shape:
            rows += _tokens_of(name, tensors, reference, candidate, decode)
    return tuple(rows)


def _tokens_of(
    case: str, tensors: dict[str, NDArray[Any]], reference: NDArray[Any], candidate: NDArray[Any], decode: Decode
) -> Iterable[TokenParity]:
    real = OwnLengths.of(tensors)
    for row, (ids, new) in enumerate(zip(tensors[INPUT_IDS], real.new, strict=True)):
        columns = [int(column) for column in np.flatnonzero(new)]
        # Of the first columns there may be no logits; padding stands on the left.
        untold = new.shape[0] - reference.shape[1]
        for number, column in enumerate(columns):
            if column < untold:
                continue
            before, place = int(real.before[row]) + number, column - untold
            figures = compare_predictions(reference[row, place], candidate[row, place])
            likeliest = (decode(figures["expected"]), decode(figures["found"]))
            yield TokenParity(
                case=case,
                row=row,
                position=before,
                token=int(ids[column]),
                text=decode(int(ids[column])),
                expected_text=likeliest[0],
                found_text=likeliest[1],
                **figures,
            )


def compare_predictions(reference_V: NDArray[Any], candidate_V: NDArray[Any]) -> dict[str, Any]:
    """The figures of :class:`TokenParity` for one prediction.

    Args:
        reference_V: finite logits.
        candidate_V: logits; ones that are not all finite predict nothing: KL is infinite and the rank the last.
    """
    p_V, q_V = (side.astype(np.float64) for side in (reference_V, candidate_V))
    expected = int(p_V.argmax())
    if not np.isfinite(q_V).all():
        return {
            "kl": float("inf"),
            "expected": expected,
            "found": -1,
            "rank": len(q_V),
            "reference_margin": margin(p_V),
            "candidate_margin": None,
        }
    log_p_V, log_q_V = _log_softmax(p_V), _log_softmax(q_V)
    found = int(q_V.argmax())
    # A token that ties with the likeliest and stands behind it is not the one that is chosen.
    rank = 1 if found == expected else max(2, 1 + int((q_V > q_V[expected]).sum()))
    return {
        # Below 0 only by rounding.
        "kl": max(0.0, float((np.exp(log_p_V) * (log_p_V - log_q_V)).sum())),
        "expected": expected,
        "found": found,
        "rank": rank,
        "reference_margin": margin(p_V),
        "candidate_margin": margin(q_V),
    }


def margin(logits_V: NDArray[Any]) -> float:
    """The likeliest token's logit less the second's; infinite for a vocabulary of one."""
    if logits_V.size < 2:
        return float("inf")
    second, first = np.partition(logits_V.astype(np.float64), -2)[-2:]
    return float(first - second)


def _log_softmax(logits_V: Figures) -> Figures:
    shifted_V = logits_V - logits_V.max()
    return shifted_V - np.log(np.exp(shifted_V).sum())  # type: ignore[no-any-return]
