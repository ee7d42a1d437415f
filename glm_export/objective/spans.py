"""Which tokens of a sample are hidden: lengths drawn from a Poisson distribution, and places for them.

The order of random draws is part of the specification: a seed gives the batch that THUDM/GLM gives.
Source: arXiv:2103.10360, section 2.1; THUDM/GLM ``blocklm_utils.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import NamedTuple

from glm_export.objective.settings import InfillingTokens, Objective


class Span(NamedTuple):
    """Tokens ``start`` up to ``end``, which is excluded."""

    start: int
    end: int


class Region(NamedTuple):
    """A stretch of text where spans may lie: first token, and number of tokens."""

    start: int
    length: int


@lru_cache(maxsize=16)
def span_length_weights(mean: float, longest: int) -> tuple[float, ...]:
    """Poisson probabilities of the lengths 1 to ``longest``; 0 is left out, so they sum to less than 1."""
    return tuple(math.exp(n * math.log(mean) - math.lgamma(n + 1) - mean) for n in range(1, longest + 1))


def sample_span_lengths(token_count: int, objective: Objective, rng: Random, *, single: bool = False) -> list[int]:
    """Draw lengths until they cover ``bert_ratio`` of ``token_count`` tokens, or one length.

    The last one may overshoot. A sample too short for one hidden token gets none.
    """
    weights = span_length_weights(objective.average_block_length, objective.max_block_length - 1)
    wanted = 1 if single else int(objective.bert_ratio * token_count)
    lengths: list[int] = []
    while sum(lengths) < wanted:
        lengths += rng.choices(range(1, len(weights) + 1), weights=weights)
    return lengths


def text_regions(text: Sequence[int], tokens: InfillingTokens) -> list[Region]:
    """Where spans may lie: each document without its ``enc`` and ``eos``, the last document first.

    A document without ``eos`` loses its last token instead. After a final ``eos`` comes an empty region.
    """
    regions: list[Region] = []
    start = 0
    for end in [*(place for place, token in enumerate(text) if token == tokens.eos), len(text)]:
        first = start + (start < end and text[start] == tokens.enc)
        last = end - (end == len(text))
        regions.append(Region(first, max(last - first, 0)))
        start = end + 1
    return regions[::-1]


def leading_lengths(lengths: Sequence[int], *, budget: int, room: int) -> Sequence[int]:
    """The first lengths that sum to ``budget`` at most and fit into ``room`` with a token between each two."""
    for count, total in enumerate(accumulate(lengths)):
        if total > budget or total + count > room:
            return lengths[:count]
    return lengths


def scatter_spans(lengths: Sequence[int], region: Region, rng: Random) -> list[Span]:
    """Put spans of these lengths into ``region``, in this order, at least one token apart.

    The tokens that remain are dealt out to the gaps: each span draws how many of them lie before it.
    """
    slack = region.length - sum(lengths) - len(lengths) + 1
    before = sorted(rng.randrange(slack + 1) for _ in lengths)
    spans: list[Span] = []
    start = region.start
    for gap, length in zip(before, lengths, strict=True):
        spans.append(Span(start + gap, start + gap + length))
        start += length + 1
    return spans


def place_spans(
    text: Sequence[int], lengths: Sequence[int], tokens: InfillingTokens, ratio: float, rng: Random
) -> list[Span] | None:
    """Choose places for all ``lengths``, or None when they do not fit.

    Short documents give up at most ``ratio`` of their tokens; the longest takes every span that is left.

    Returns:
        Spans document by document, from the shortest to the longest.
    """
    # Shuffled twice, because the official code does; lengths that were drawn alike need neither.
    lengths = list(lengths)
    rng.shuffle(lengths)
    rng.shuffle(lengths)
    spans: list[Span] = []
    *shorter, longest = sorted(text_regions(text, tokens), key=lambda region: region.length)
    for region in [*shorter, longest]:
        budget = region.length if region is longest else int(region.length * ratio)
        chosen = leading_lengths(lengths[len(spans) :], budget=budget, room=region.length)
        if chosen:
            spans += scatter_spans(chosen, region, rng)
    return spans if len(spans) == len(lengths) else None


def sentence_spans(text: Sequence[int], tokens: InfillingTokens) -> list[Span]:
    """Sentences, left to right, with the token that ends them.

    What stands between the last sentence end and ``eos`` belongs to no sentence; an unfinished last sentence is one.
    Later documents keep their ``enc`` inside their first sentence, as in the official code.
    """
    spans: list[Span] = []
    start = 1 if text[0] == tokens.enc else 0
    for place in range(start, len(text)):
        if text[place] == tokens.eos:
            start = place + 1
        elif text[place] in tokens.sentence_ends:
            spans.append(Span(start, place + 1))
            start = place + 1
    if start < len(text):
        spans.append(Span(start, len(text)))
    return spans


def sample_sentences(text: Sequence[int], tokens: InfillingTokens, ratio: float, rng: Random) -> list[Span]:
    """Draw sentences until they cover ``ratio`` of the tokens, one at least, in the order drawn."""
    spans = sentence_spans(text, tokens)
    rng.shuffle(spans)
    wanted = int(ratio * len(text))
    chosen: list[Span] = []
    covered = 0
    for span in spans:
        chosen.append(span)
        covered += span.end - span.start
        if covered >= wanted:
            break
    return chosen


def sample_window(text: Sequence[int], length: int, tokens: InfillingTokens, rng: Random) -> Span:
    """A stretch of at most ``length`` tokens that begins and ends with a sentence where one is near.

    The start moves back to the sentence it fell into; the end moves back to a sentence end, unless less than half of
    ``length`` would be left.
    """

    def closes(place: int) -> bool:
        return text[place] == tokens.eos or text[place] in tokens.sentence_ends

    if len(text) <= length:
        return Span(0, len(text))
    start = rng.randrange(len(text) - length + 1)
    while start > 0 and not closes(start - 1):
        start -= 1
    end = start + length
    while end > start and not closes(end - 1):
        end -= 1
    return Span(start, end if end - start >= length // 2 else start + length)
