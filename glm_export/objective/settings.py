"""What the pretraining objective can be told: probabilities, ratios, and the ids of its special tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum

from glm_export.errors import InputError

SENTENCE_ENDS = frozenset(".?!;:。？！；…\n")
"""A token ends a sentence when its text holds one of these."""
SHORTEST_SPLIT = 32
"""Fewest tokens of a short sequence, before the leading ``enc``."""


class Mode(StrEnum):
    """What one batch hides; the values are the names used by THUDM/GLM."""

    SPANS = "bert"
    SENTENCES = "sentence"
    DOCUMENT = "gpt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of autoregressive blank infilling, with the defaults of the official class.

    The released Chinese models were trained with ``task_mask``, ``bert_prob`` 0.4 (10b: 0.5), ``gap_sentence_prob``
    0.3, ``gpt_min_ratio`` 0.25, ``block_mask_prob`` 0.1 and ``short_seq_prob`` 0.02.

    Source: arXiv:2103.10360, sections 2.1-2.2 and appendix A; THUDM/GLM ``blocklm_utils.py``, ``arguments.py``.
    Left out: ``context_mask_ratio``, which replaces tokens of the visible part; it is 0 in every published script.

    Attributes:
        bert_prob: probability that a batch hides token spans.
        gap_sentence_prob: probability that a batch hides sentences; what is left hides the end or the middle of
            whole documents.
        gpt_infill_prob: probability that a single-document sample hides its end (predicted up to ``eos``, without
            ``eop``) rather than one span anywhere. The name is the official one, and says the opposite.
        gpt_min_ratio: shortest hidden part of a document, as a share of the batch's shortest sample.
        bert_ratio: share of a sample's tokens hidden as spans, at least.
        gap_sentence_ratio: share of a sample's tokens hidden as sentences, at least.
        average_block_length: mean of the Poisson distribution of span lengths, in tokens.
        max_block_length: span lengths are below it, in tokens.
        block_mask_prob: probability that a span's input token is replaced by ``dblock`` (token spans only).
        short_seq_prob: probability that a batch is cut into shorter samples.
        single_span_prob: probability that a batch hides one span per sample.
        shuffle_blocks: hidden spans follow in random order; False keeps the order of the text.
        task_mask: ``smask`` and ``gmask`` stand for sentences and documents; False uses ``mask`` for all three.
        random_position: add one random offset to all positions of an infilled sample.
        max_seq_length: tokens of an uncorrupted sample; read by ``short_seq_prob`` and ``random_position`` alone.
    """

    bert_prob: float = 1.0
    gap_sentence_prob: float = 0.0
    gpt_infill_prob: float = 0.5
    gpt_min_ratio: float = 0.5
    bert_ratio: float = 0.15
    gap_sentence_ratio: float = 0.15
    average_block_length: float = 3.0
    max_block_length: int = 40
    block_mask_prob: float = 0.0
    short_seq_prob: float = 0.0
    single_span_prob: float = 0.0
    shuffle_blocks: bool = True
    task_mask: bool = False
    random_position: bool = False
    max_seq_length: int = 512

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_prob", "_ratio")) and not 0 <= value <= 1:
                raise InputError(f"{field.name} must be between 0 and 1, found {value}")
        together = self.bert_prob + self.gap_sentence_prob
        if together > 1 + 1e-9:
            raise InputError(f"bert_prob + gap_sentence_prob must be at most 1, found {together:g}: lower one of them")
        for name, good, expected in (
            ("average_block_length", self.average_block_length > 0, "above 0"),
            ("max_block_length", self.max_block_length >= 2, "2 or more: spans are shorter than it"),
            ("bert_ratio", self.bert_ratio > 0 or not self.bert_prob, "above 0, or bert_prob 0"),
            ("gap_sentence_ratio", self.gap_sentence_ratio > 0 or not self.gap_sentence_prob,
             "above 0, or gap_sentence_prob 0"),
            ("max_seq_length", self.max_seq_length >= self._shortest_sequence, f"{self._shortest_sequence} or more"),
        ):  # fmt: skip
            if not good:
                raise InputError(f"{name} must be {expected}, found {getattr(self, name)}")

    @property
    def _shortest_sequence(self) -> int:
        return SHORTEST_SPLIT + 2 if self.short_seq_prob else 3

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What a batch may hide: the modes of probability above 0."""
        shares = (self.bert_prob, self.gap_sentence_prob, 1 - self.bert_prob - self.gap_sentence_prob)
        return tuple(mode for mode, share in zip(Mode, shares, strict=True) if share > 1e-9)

    def mode(self, draw: float) -> Mode:
        """What a batch hides, given a draw from [0, 1)."""
        if draw < self.bert_prob:
            return Mode.SPANS
        return Mode.SENTENCES if draw < self.bert_prob + self.gap_sentence_prob else Mode.DOCUMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillingTokens:
    """Ids the objective needs, and which ids end a sentence.

    Attributes:
        enc: begins a sample (``[CLS]``).
        eos: ends a document (``<|endoftext|>``).
        mask: stands for a span (``[MASK]``).
        sop: begins a span in part B (``<|startofpiece|>``).
        eop: ends a span in the targets (``<|endofpiece|>``).
        smask: stands for a sentence (``[sMASK]``); needed with ``task_mask``.
        gmask: stands for a document's hidden part (``[gMASK]``); needed with ``task_mask``.
        dblock: replaces input tokens of a span (``dBLOCK``); needed with ``block_mask_prob``.
        pad: fills the right of shorter rows. The official collator writes 0, whatever the vocabulary's ``<pad>``.
        sentence_ends: ids that end a sentence; see :func:`sentence_end_ids`.
    """

    enc: int
    eos: int
    mask: int
    sop: int
    eop: int
    smask: int | None = None
    gmask: int | None = None
    dblock: int | None = None
    pad: int = 0
    sentence_ends: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        numbers = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "sentence_ends"}
        for name, value in numbers.items():
            if value is not None and value < 0:
                raise InputError(f"token id {name} must be 0 or more, found {value}")
        # eop may equal gmask (glm-10b-chinese was trained so), and pad may equal anything.
        markers = [self.enc, self.eos, self.mask, self.sop]
        if len(set(markers)) < len(markers):
            raise InputError(f"enc, eos, mask and sop must be four different ids, found {markers}")

    def mask_for(self, mode: Mode, *, task_mask: bool) -> int:
        """The token that stands for what ``mode`` hides."""
        if not task_mask:
            return self.mask
        name = {Mode.SPANS: "mask", Mode.SENTENCES: "smask", Mode.DOCUMENT: "gmask"}[mode]
        found: int | None = getattr(self, name)
        if found is None:
            raise InputError(f"task_mask needs the token id {name}, found None: give it, or set task_mask=False")
        return found

    def check(self, objective: Objective) -> None:
        """Raise where ``objective`` needs an id that is not here."""
        for mode in objective.modes:
            self.mask_for(mode, task_mask=objective.task_mask)
        if objective.block_mask_prob and self.dblock is None:
            raise InputError("block_mask_prob needs the token id dblock, found None: give it, or set the former to 0")
        if objective.gap_sentence_prob and not self.sentence_ends:
            raise InputError("gap_sentence_prob needs sentence_ends, found none: give them, or set the former to 0")


def sentence_end_ids(surfaces: Iterable[str]) -> frozenset[int]:
    """Ids whose text holds ``. ? ! ; :``, their full-width kin, ``…`` or a newline.

    Args:
        surfaces: the text of ids 0, 1, 2, … (SentencePiece pieces as they are: ``<n>`` does not count as a newline).
    """
    return frozenset(number for number, surface in enumerate(surfaces) if SENTENCE_ENDS & set(surface))
