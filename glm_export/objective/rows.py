"""One corrupted sample as one row: part A with masks, part B with what they hide.

A row is ``part A ++ part B``; ``sep`` is the length of part A.
Source: arXiv:2103.10360, sections 2.1 and 2.3; THUDM/GLM ``blocklm_utils.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from glm_export.objective.settings import InfillingTokens
from glm_export.objective.spans import Span


class Sample(NamedTuple):
    """``enc``, tokens and usually ``eos``; ``loss_mask`` 1 where document mode may ask for the token."""

    text: Sequence[int]
    loss_mask: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillingRow:
    """One row before padding: five equally long lists, and the length of part A."""

    input_ids: list[int]
    target_ids: list[int]
    loss_mask: list[int]
    positions: list[int]
    block_positions: list[int]
    sep: int


def build_infilling_row(
    text: Sequence[int],
    spans: Sequence[Span],
    mask_id: int,
    tokens: InfillingTokens,
    *,
    offset: int = 0,
    hidden: Callable[[], bool] = lambda: False,
) -> InfillingRow:
    """Replace each span by ``mask_id``, and append the spans in the order given.

    ``[a b c d e]`` with the spans ``[d e]``, ``[b]`` becomes::

        input     a  M  c  M  sop d  e   sop b
        target    a  M  c  M  d   e  eop b   eop
        position  0  1  2  3  3   3  3   1   1
        block     0  0  0  0  1   2  3   1   2

    Args:
        text: tokens of the sample.
        spans: disjoint stretches of it.
        mask_id: ``mask``, ``smask`` or ``gmask``.
        tokens: special ids.
        offset: added to every position.
        hidden: asked once per token of a span; True replaces it in the input by ``dblock``.
    """
    part_a: list[int] = []
    place_of: dict[Span, int] = {}
    start = 0
    for span in sorted(spans):
        part_a += text[start : span.start]
        place_of[span] = len(part_a)
        part_a.append(mask_id)
        start = span.end
    part_a += text[start:]
    inputs, targets, positions, blocks = list(part_a), list(part_a), list(range(len(part_a))), [0] * len(part_a)
    for span in spans:
        piece = list(text[span.start : span.end])
        shown = [tokens.dblock if tokens.dblock is not None and hidden() else token for token in piece]
        inputs += [tokens.sop, *shown]
        targets += [*piece, tokens.eop]
        positions += [place_of[span]] * (len(piece) + 1)
        blocks += range(1, len(piece) + 2)
    return InfillingRow(
        input_ids=inputs,
        target_ids=targets,
        loss_mask=[0] * len(part_a) + [1] * (len(inputs) - len(part_a)),
        positions=[position + offset for position in positions],
        block_positions=blocks,
        sep=len(part_a),
    )


def build_continuation_row(sample: Sample, hidden: int, mask_id: int, tokens: InfillingTokens) -> InfillingRow:
    """Hide the last ``hidden`` tokens; ``eos`` ends them, so no ``eop`` is asked for.

    ``[a b c d eos]``, 3 hidden: input ``a b M sop c d``, target ``a b M c d eos``, position ``0 1 2 2 2 2``.
    """
    text, split = list(sample.text), len(sample.text) - hidden
    return InfillingRow(
        input_ids=[*text[:split], mask_id, tokens.sop, *text[split:-1]],
        target_ids=[*text[:split], mask_id, *text[split:]],
        loss_mask=[*([0] * (split + 1)), *sample.loss_mask[split:]],
        positions=[*range(split + 1), *([split] * hidden)],
        block_positions=[*([0] * (split + 1)), *range(1, hidden + 1)],
        sep=split + 1,
    )
