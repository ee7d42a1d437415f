"""Samples in, training batches out: one mode a batch, drawn from a seed.

Shapes: B rows, S tokens of the longest row. A row is ``part A ++ part B``; ``sep`` is the length of part A.
Source: arXiv:2103.10360, sections 2.1-2.3; THUDM/GLM ``blocklm_utils.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError, listed
from glm_export.objective.rows import InfillingRow, Sample, build_continuation_row, build_infilling_row
from glm_export.objective.settings import SHORTEST_SPLIT, InfillingTokens, Mode, Objective
from glm_export.objective.spans import Span, place_spans, sample_sentences, sample_span_lengths, sample_window

Ids = NDArray[np.int64]
SHORTEST_SAMPLE = 3
"""``enc``, one token to hide, and one that stays."""
BLOCK_MASK_SEED = 1000
"""Added to the seed for ``block_mask_prob``, which draws from a stream of its own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InfillingBatch:
    """What one training step needs; all arrays int64.

    Attributes:
        mode: what the batch hides.
        input_ids: ``[B, S]``.
        target_ids: ``[B, S]``, the token each position predicts: not shifted further.
        loss_mask: ``[B, S]``, 1 where the loss counts.
        position_ids: ``[B, 2, S]``: position in part A (part B repeats its mask's), and position within the block.
        sep: ``[B]``, length of part A, seen by every row of the attention; see :func:`attention_mask`.
        kept: for each row the sample it came from. Samples whose spans found no room are left out.
    """

    mode: Mode
    input_ids: Ids
    target_ids: Ids
    loss_mask: Ids
    position_ids: Ids
    sep: Ids
    kept: tuple[int, ...]


def attention_mask(sep_B: Ids, length: int) -> NDArray[np.bool_]:
    """``[B, 1, S, S]``, True where the row may look at the column: part A, and what is not later."""
    places_S = np.arange(length)
    causal_SS = places_S[None, :] <= places_S[:, None]
    part_a_BS = places_S[None, :] < np.asarray(sep_B)[:, None]
    mask: NDArray[np.bool_] = causal_SS[None, None] | part_a_BS[:, None, None, :]
    return mask


def split_sample(sample: Sample, length: int, count: int, tokens: InfillingTokens, rng: Random) -> list[Sample]:
    """``count`` stretches of at most ``length`` tokens, each behind its own ``enc``; a shorter sample stays whole."""
    if len(sample.text) - 1 <= length:
        return [sample]
    text, loss_mask = sample.text[1:], sample.loss_mask[1:]
    windows = [sample_window(text, length, tokens, rng) for _ in range(count)]
    return [Sample([tokens.enc, *text[start:end]], [0, *loss_mask[start:end]]) for start, end in windows]


class InfillingCollator:
    """Autoregressive blank infilling as a seeded collator: the same samples and seed give the same batch.

    One mode is drawn for a whole batch. No golden batch covers the cutting of samples longer than a drawn short length
    (``short_seq_prob``), nor the offset of ``random_position``: both follow our own rule, so seeds may differ there.
    """

    def __init__(self, objective: Objective, tokens: InfillingTokens) -> None:
        tokens.check(objective)
        self.objective = objective
        self.tokens = tokens

    def __call__(
        self, samples: Sequence[Sequence[int]], seed: int, *, loss_masks: Sequence[Sequence[int]] | None = None
    ) -> InfillingBatch:
        """Corrupt samples and pad them on the right.

        Args:
            samples: token ids, each ``enc … eos``, or several such documents one behind the other; the last one may
                lack its ``eos``.
            seed: a number of its own for every batch; officially ``(step * workers + worker) * ranks + rank``.
            loss_masks: per sample, 1 where a token may be a target; read by document mode alone when it hides the
                end of a sample. Default: all but ``enc``.

        Raises:
            InputError: a sample is too short, lacks its ``enc``, or no sample has room for its spans.
        """
        objective = self.objective
        rng = Random(seed)
        block_rng = Random(seed + BLOCK_MASK_SEED)
        numbered = list(enumerate(self._checked(samples, loss_masks)))
        # All three draws come before any other, whatever the probabilities: later draws depend on their number.
        if rng.random() < objective.short_seq_prob:
            numbered = self._shortened(numbered, rng)
        single = rng.random() < objective.single_span_prob
        mode = objective.mode(0.0 if single else rng.random())
        texts = [sample.text for _, sample in numbered]
        hidden = self._hidden_count(texts, rng) if mode is Mode.DOCUMENT else 0
        rows: list[InfillingRow] = []
        kept: list[int] = []
        for number, sample in numbered:
            if mode is Mode.SPANS:
                row = self._row_of_spans(sample.text, rng, block_rng, single=single)
            elif mode is Mode.SENTENCES:
                row = self._row_of_sentences(sample.text, rng)
            else:
                row = self._row_of_document(sample, hidden, rng)
            if row is not None:
                rows.append(row)
                kept.append(number)
        if not rows:
            raise InputError(f"no sample of {len(samples)} has room for what {mode.value!r} hides: give longer ones")
        return self._padded(rows, mode, tuple(kept))

    def _checked(self, samples: Sequence[Sequence[int]], loss_masks: Sequence[Sequence[int]] | None) -> list[Sample]:
        if not samples:
            raise InputError("a batch needs at least one sample, found none")
        if loss_masks is None:
            loss_masks = [[int(token != self.tokens.enc) for token in text] for text in samples]
        if [len(text) for text in samples] != [len(loss_mask) for loss_mask in loss_masks]:
            raise InputError("loss_masks must have one number per token of each sample: the lengths differ")
        for number, text in enumerate(samples):
            if len(text) < SHORTEST_SAMPLE or text[0] != self.tokens.enc:
                raise InputError(
                    f"sample {number} must hold {SHORTEST_SAMPLE} tokens or more and begin with enc "
                    f"{self.tokens.enc}, found {listed(text[:SHORTEST_SAMPLE])}: prepend it"
                )
        return [Sample(list(text), list(mask)) for text, mask in zip(samples, loss_masks, strict=True)]

    def _shortened(self, numbered: list[tuple[int, Sample]], rng: Random) -> list[tuple[int, Sample]]:
        longest = self.objective.max_seq_length - 1
        length = rng.randrange(SHORTEST_SPLIT, longest)
        return [
            (number, part)
            for number, sample in numbered
            for part in split_sample(sample, length, longest // length, self.tokens, rng)
        ]

    def _hidden_count(self, texts: Sequence[Sequence[int]], rng: Random) -> int:
        """Tokens that document mode hides, one number for the whole batch."""
        lengths = [len(text) for text in texts]
        most = max(lengths) - 2
        # The bounds matter for samples of a few tokens, where the range would be empty or begin at 0.
        fewest = min(max(int(self.objective.gpt_min_ratio * min(lengths)), 1), most)
        return rng.randint(fewest, most)

    def _row_of_spans(
        self, text: Sequence[int], rng: Random, block_rng: Random, *, single: bool
    ) -> InfillingRow | None:
        lengths = sample_span_lengths(len(text), self.objective, rng, single=single)
        spans = place_spans(text, lengths, self.tokens, self.objective.bert_ratio, rng)
        chance = self.objective.block_mask_prob
        return self._row(text, spans, Mode.SPANS, rng, hidden=lambda: chance > 0 and block_rng.random() < chance)

    def _row_of_sentences(self, text: Sequence[int], rng: Random) -> InfillingRow | None:
        spans = sample_sentences(text, self.tokens, self.objective.gap_sentence_ratio, rng)
        return self._row(text, spans, Mode.SENTENCES, rng)

    def _row_of_document(self, sample: Sample, hidden: int, rng: Random) -> InfillingRow | None:
        hidden = min(hidden, len(sample.text) - 2)
        # No draw for several documents: one span could cross from one into the next.
        if self.tokens.eos in sample.text[:-1] or rng.random() < self.objective.gpt_infill_prob:
            mask_id = self.tokens.mask_for(Mode.DOCUMENT, task_mask=self.objective.task_mask)
            return build_continuation_row(sample, hidden, mask_id, self.tokens)
        spans = place_spans(sample.text, [hidden], self.tokens, self.objective.bert_ratio, rng)
        return self._row(sample.text, spans, Mode.DOCUMENT, rng)

    def _row(
        self,
        text: Sequence[int],
        spans: list[Span] | None,
        mode: Mode,
        rng: Random,
        hidden: Callable[[], bool] = lambda: False,
    ) -> InfillingRow | None:
        """None where nothing is hidden: such a row has no loss."""
        if not spans:
            return None
        offset = 0
        if self.objective.random_position and len(text) < self.objective.max_seq_length:
            offset = rng.randrange(self.objective.max_seq_length - len(text) + 1)
        if self.objective.shuffle_blocks:
            rng.shuffle(spans)
        else:
            spans.sort()
        mask_id = self.tokens.mask_for(mode, task_mask=self.objective.task_mask)
        return build_infilling_row(text, spans, mask_id, self.tokens, offset=offset, hidden=hidden)

    def _padded(self, rows: Sequence[InfillingRow], mode: Mode, kept: tuple[int, ...]) -> InfillingBatch:
        length = max(len(row.input_ids) for row in rows)

        def array(lists: Iterable[list[int]], fill: int = 0) -> Ids:
            return np.array([[*values, *[fill] * (length - len(values))] for values in lists], np.int64)

        positions, blocks = array(row.positions for row in rows), array(row.block_positions for row in rows)
        return InfillingBatch(
            mode=mode,
            input_ids=array((row.input_ids for row in rows), self.tokens.pad),
            target_ids=array((row.target_ids for row in rows), self.tokens.pad),
            loss_mask=array(row.loss_mask for row in rows),
            position_ids=np.stack([positions, blocks], axis=1),
            sep=np.array([row.sep for row in rows], np.int64),
            kept=kept,
        )
