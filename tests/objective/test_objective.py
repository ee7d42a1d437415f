"""The pretraining objective: every golden batch bit for bit, and what must hold for any sample and seed."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from glm_export.errors import InputError
from glm_export.objective import (
    InfillingBatch,
    InfillingCollator,
    InfillingTokens,
    Mode,
    Objective,
    attention_mask,
    collator,
    sentence_end_ids,
)
from glm_export.objective.loss import infilling_loss
from glm_export.objective.rows import Sample, build_continuation_row, build_infilling_row
from glm_export.objective.spans import (
    Region,
    Span,
    leading_lengths,
    place_spans,
    sample_span_lengths,
    sample_window,
    scatter_spans,
    sentence_spans,
    span_length_weights,
    text_regions,
)
from tests.helpers.golden_data import GOLDEN

FACTS: dict[str, Any] = json.loads((GOLDEN / "glm_objective" / "objective_golden.json").read_text())
IDS = FACTS["command_ids"]
TOKENS = InfillingTokens(
    enc=IDS["ENC"], eos=IDS["eos"], mask=IDS["MASK"], sop=IDS["sop"], eop=IDS["eop"], smask=IDS["sMASK"],
    gmask=IDS["gMASK"], dblock=IDS["dBLOCK"], sentence_ends=frozenset(FACTS["sentence_end_ids"]),
)  # fmt: skip
CASES = [(setting, case) for setting, cases in FACTS["cases"].items() for case in cases]
ENDS = sorted(TOKENS.sentence_ends)
TEXT = st.integers(3, 109) | st.sampled_from(ENDS)
DOCUMENTS = st.lists(st.lists(TEXT, min_size=2, max_size=40), min_size=1, max_size=3)


@st.composite
def samples(draw: st.DrawFn) -> list[int]:
    """One to three documents; the last may be unfinished."""
    text = [token for document in draw(DOCUMENTS) for token in (TOKENS.enc, *document, TOKENS.eos)]
    return text if draw(st.booleans()) else text[:-1]


BATCHES = st.lists(samples(), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**40)
OBJECTIVES = st.builds(
    Objective, bert_prob=st.just(0.4), gap_sentence_prob=st.just(0.3), gpt_min_ratio=st.floats(0, 1),
    bert_ratio=st.floats(0.05, 0.4), gap_sentence_ratio=st.floats(0.05, 1), block_mask_prob=st.sampled_from([0.0, 0.3]),
    single_span_prob=st.sampled_from([0.0, 0.2]), shuffle_blocks=st.booleans(), task_mask=st.booleans(),
    random_position=st.booleans(), max_seq_length=st.sampled_from([64, 512]),
)  # fmt: skip


def golden_batch(case: dict[str, Any], seed: int) -> InfillingBatch:
    chosen = FACTS["samples"][case["samples"]]
    collate = InfillingCollator(Objective(max_seq_length=FACTS["max_seq_length"], **case["kwargs"]), TOKENS)
    return collate([one["text"] for one in chosen], seed, loss_masks=[one["loss_mask"] for one in chosen])


def equal(batch: InfillingBatch, case: dict[str, Any]) -> bool:
    pairs = (
        (batch.input_ids, case["text"]), (batch.target_ids, case["target"]), (batch.loss_mask, case["loss_mask"]),
        (batch.position_ids, case["position_id"]), (batch.sep, case["attention_mask"]),
    )  # fmt: skip
    return batch.mode.value == case["mode"] and all(np.array_equal(found, expected) for found, expected in pairs)


def collate_or_nothing(objective: Objective, batch: list[list[int]], seed: int) -> InfillingBatch | None:
    try:
        return InfillingCollator(objective, TOKENS)(batch, seed)
    except InputError as error:
        if "has room" not in str(error):
            raise
        return None


def blocks(batch: InfillingBatch, row: int) -> list[slice]:
    """The columns of each span of part B."""
    inside = batch.position_ids[row, 1]
    starts = [*np.flatnonzero(inside == 1).tolist(), int(batch.sep[row]) + int((inside > 0).sum())]
    return [slice(start, end) for start, end in pairwise(starts)]


def test_number_of_golden_batches() -> None:
    assert len(CASES) == 110
    assert Counter(case["mode"] for _, case in CASES) == {"bert": 51, "sentence": 28, "gpt": 31}
    assert len(FACTS["cases"]) == 12


@pytest.mark.parametrize("setting", FACTS["cases"])
def test_golden_batches(setting: str) -> None:
    for case in FACTS["cases"][setting]:
        batch = golden_batch(case, case["rng_seed"])
        assert equal(batch, case), (case["samples"], case["count"])
        assert batch.kept == tuple(range(len(case["text"])))
        assert {array.dtype for array in (batch.input_ids, batch.loss_mask, batch.position_ids, batch.sep)} == {
            np.dtype(np.int64)
        }


def test_default_loss_mask_is_the_golden_one() -> None:
    for chosen in FACTS["samples"].values():
        for sample in chosen:
            assert sample["loss_mask"] == [int(token != TOKENS.enc) for token in sample["text"]]


def test_golden_span_length_distribution() -> None:
    np.testing.assert_allclose(span_length_weights(3.0, 39), FACTS["block_length_distribution"], rtol=1e-12)


def test_another_seed_is_another_batch() -> None:
    same = sum(equal(golden_batch(case, case["rng_seed"] + 1), case) for _, case in CASES)
    assert same < len(CASES) / 10


class OneShuffle(Random):
    """Leaves out the first of the two shuffles of a sample's lengths (the third is that of the spans)."""

    shuffles = 0

    def shuffle(self, x: Any, random: Any = None) -> None:
        self.shuffles += 1
        if self.shuffles % 3 != 1:
            super().shuffle(x)


def test_one_shuffle_of_lengths_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collator, "Random", OneShuffle)
    found = [equal(golden_batch(case, case["rng_seed"]), case) for case in FACTS["cases"]["a_token_spans"]]
    assert found.count(True) < len(found) / 5


@given(batch=BATCHES, seed=SEEDS, objective=OBJECTIVES)
@settings(max_examples=150)
def test_part_b_points_at_its_mask_and_fills_part_a(batch: list[list[int]], seed: int, objective: Objective) -> None:
    """Part A with every mask replaced by its span is the sample, and each row is A, then B, then padding."""
    found = collate_or_nothing(objective, batch, seed)
    if found is None:
        return
    mask_id = TOKENS.mask_for(found.mode, task_mask=objective.task_mask)
    for row, number in enumerate(found.kept):
        text, sep, places = batch[number], int(found.sep[row]), found.position_ids[row, 0]
        offset = int(places[0])
        assert 0 <= offset <= max(objective.max_seq_length - len(text), 0) * objective.random_position
        np.testing.assert_array_equal(places[:sep], offset + np.arange(sep))
        assert not found.position_ids[row, 1, :sep].any()
        filled, end = found.input_ids[row, :sep].tolist(), sep
        spans: dict[int, list[int]] = {}
        for columns in blocks(found, row):
            (place,) = set((places[columns] - offset).tolist())
            assert filled[place] == mask_id
            np.testing.assert_array_equal(found.position_ids[row, 1, columns], 1 + np.arange(columns.stop - end))
            assert found.input_ids[row, columns.start] == TOKENS.sop
            target = found.target_ids[row, columns].tolist()
            spans[place] = target[:-1] if target[-1] == TOKENS.eop else target
            shown = found.input_ids[row, columns.start + 1 : columns.stop].tolist()
            dblock = TOKENS.dblock if objective.block_mask_prob and found.mode is Mode.SPANS else None
            # The targets are one ahead: the first follows sop, the last (eop or eos) is never an input.
            assert all(token in (kept, dblock) for token, kept in zip(shown, target[:-1], strict=True))
            end = columns.stop
        if not objective.shuffle_blocks:
            assert list(spans) == sorted(spans)
        for place in sorted(spans, reverse=True):
            filled[place : place + 1] = spans[place]
        assert filled == text
        for array in (found.input_ids, found.target_ids, found.loss_mask, *found.position_ids.transpose(1, 0, 2)):
            assert not array[row, end:].any()


@given(batch=BATCHES, seed=SEEDS, objective=OBJECTIVES)
@settings(max_examples=150)
def test_loss_counts_part_b_alone(batch: list[list[int]], seed: int, objective: Objective) -> None:
    found = collate_or_nothing(objective, batch, seed)
    if found is None:
        return
    for row, number in enumerate(found.kept):
        text, sep = batch[number], int(found.sep[row])
        parts = blocks(found, row)
        b_length = sum(part.stop - part.start for part in parts)
        assert not found.loss_mask[row, :sep].any()
        np.testing.assert_array_equal(found.target_ids[row, :sep], found.input_ids[row, :sep])
        wanted = found.target_ids[row, sep : sep + b_length]
        # The end of several documents may hold an enc, which is not asked for; a sentence's enc is.
        counted = wanted != TOKENS.enc if found.mode is Mode.DOCUMENT else np.ones(b_length)
        np.testing.assert_array_equal(found.loss_mask[row, sep : sep + b_length], counted)
        covered = b_length - len(parts)
        if found.mode is Mode.SENTENCES:
            everything = sum(span.end - span.start for span in sentence_spans(text, TOKENS))
            assert covered >= min(int(objective.gap_sentence_ratio * len(text)), everything)
        if found.mode is Mode.SPANS and not objective.single_span_prob:
            assert covered >= int(objective.bert_ratio * len(text))


@given(batch=BATCHES, seed=SEEDS, objective=OBJECTIVES)
@settings(max_examples=50)
def test_seed_fixes_the_batch(batch: list[list[int]], seed: int, objective: Objective) -> None:
    first, again = (collate_or_nothing(objective, batch, seed) for _ in range(2))
    if first is None or again is None:
        assert first is again
        return
    assert (first.mode, first.kept) == (again.mode, again.kept)
    for name in ("input_ids", "target_ids", "loss_mask", "position_ids", "sep"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


@given(seps=st.lists(st.integers(0, 12), min_size=1, max_size=4), length=st.integers(1, 12))
@settings(max_examples=60)
def test_attention_mask(seps: list[int], length: int) -> None:
    mask = attention_mask(np.array(seps), length)
    assert mask.dtype == np.bool_
    expected = [
        [[[col < sep or col <= row for col in range(length)] for row in range(length)]] for sep in seps
    ]  # fmt: skip
    np.testing.assert_array_equal(mask, expected)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), spare=st.integers(0, 20), start=st.integers(0, 5),
    seed=SEEDS,
)  # fmt: skip
@settings(max_examples=100)
def test_spans_stay_apart_and_inside(lengths: list[int], spare: int, start: int, seed: int) -> None:
    region = Region(start, sum(lengths) + len(lengths) - 1 + spare)
    spans = scatter_spans(lengths, region, Random(seed))
    assert [span.end - span.start for span in spans] == lengths
    assert spans[0].start >= start
    assert spans[-1].end <= start + region.length
    assert all(left.end < right.start for left, right in pairwise(spans))


def test_span_lengths_follow_poisson() -> None:
    """Mean of a Poisson distribution without 0: 3 / (1 - exp(-3)) = 3.157."""
    lengths = sample_span_lengths(400_000, Objective(), Random(0))
    assert np.mean(lengths) == pytest.approx(3.157, abs=0.02)
    assert sum(lengths) >= 60_000 > sum(lengths[:-1])


def test_regions_leave_out_what_marks_a_document() -> None:
    enc, eos = TOKENS.enc, TOKENS.eos
    assert text_regions([enc, 5, 6, eos, enc, 7, 8, 9], TOKENS) == [Region(5, 2), Region(1, 2)]
    assert text_regions([enc, 5, 6, eos], TOKENS) == [Region(4, 0), Region(1, 2)]


def test_short_documents_give_up_their_share_alone() -> None:
    enc, eos = TOKENS.enc, TOKENS.eos
    text = [enc, *[5] * 20, eos, enc, *[5] * 10, eos]
    spans = place_spans(text, [1] * 8, TOKENS, 0.2, Random(0))
    assert spans is not None
    assert sum(span.start > 21 for span in spans) == 2
    assert place_spans(text, [1] * 13, TOKENS, 0.2, Random(0)) is None
    assert leading_lengths([3, 3, 3], budget=9, room=10) == [3, 3]


def test_sentences() -> None:
    enc, eos, end = TOKENS.enc, TOKENS.eos, ENDS[0]
    text = [enc, 5, end, 6, end, 7, eos, enc, 8, end, 9]
    assert sentence_spans(text, TOKENS) == [Span(1, 3), Span(3, 5), Span(7, 10), Span(10, 11)]


def test_rows_of_the_docstrings() -> None:
    a, b, c, d, e = range(5, 10)
    mask, sop, eop, eos = TOKENS.mask, TOKENS.sop, TOKENS.eop, TOKENS.eos
    row = build_infilling_row([a, b, c, d, e], [Span(3, 5), Span(1, 2)], mask, TOKENS)
    assert row.input_ids == [a, mask, c, mask, sop, d, e, sop, b]
    assert row.target_ids == [a, mask, c, mask, d, e, eop, b, eop]
    assert row.positions == [0, 1, 2, 3, 3, 3, 3, 1, 1]
    assert row.block_positions == [0, 0, 0, 0, 1, 2, 3, 1, 2]
    row = build_continuation_row(Sample([a, b, c, d, eos], [1] * 5), 3, mask, TOKENS)
    assert row.input_ids == [a, b, mask, sop, c, d]
    assert row.target_ids == [a, b, mask, c, d, eos]
    assert row.positions == [0, 1, 2, 2, 2, 2]
    assert (row.loss_mask, row.sep) == ([0, 0, 0, 1, 1, 1], 3)


def test_samples_without_room_are_left_out() -> None:
    objective = Objective(average_block_length=30)
    short, long = ([TOKENS.enc, *[5] * length, TOKENS.eos] for length in (8, 400))
    batch = InfillingCollator(objective, TOKENS)([short, long, short], 0)
    assert batch.kept == (1,)
    assert batch.input_ids.shape[0] == batch.sep.shape[0] == 1
    with pytest.raises(InputError, match="room"):
        InfillingCollator(objective, TOKENS)([short], 0)


@given(seed=SEEDS, text=st.lists(TEXT, min_size=200, max_size=300))
@settings(max_examples=50)
def test_short_sequences_are_pieces_of_the_sample(seed: int, text: list[int]) -> None:
    objective = Objective(short_seq_prob=1.0, max_seq_length=200)
    batch = InfillingCollator(objective, TOKENS)([[TOKENS.enc, *text, TOKENS.eos]], seed)
    assert set(batch.kept) == {0}
    rng = Random(seed)
    rng.random()
    length = rng.randrange(32, 199)
    assert len(batch.kept) <= 199 // length
    for row in range(len(batch.kept)):
        parts = blocks(batch, row)
        hidden = sum(part.stop - part.start - 2 for part in parts)
        assert batch.input_ids[row, 0] == TOKENS.enc
        assert length // 2 < batch.sep[row] + hidden <= length + 1


def test_window_keeps_sentences_whole() -> None:
    end = ENDS[0]
    text = [5, 5, 5, end] * 20
    for seed in range(20):
        start, stop = sample_window(text, 18, TOKENS, Random(seed))
        assert start % 4 == 0
        assert stop - start == 16
    assert sample_window([5] * 50, 20, TOKENS, Random(0)) == Span(0, 20)


def test_loss_is_the_masked_mean_and_not_shifted() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 7, generator=generator)
    targets = torch.randint(7, (2, 4), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    by_hand = [-logits[row, col].log_softmax(-1)[targets[row, col]] for row, col in mask.nonzero().tolist()]
    torch.testing.assert_close(infilling_loss(logits, targets, mask), torch.stack(by_hand).mean())
    shifted = infilling_loss(logits[:, :-1], targets[:, 1:], mask[:, 1:])
    assert abs(float(shifted) - float(torch.stack(by_hand).mean())) > 1e-3
    assert infilling_loss(logits.bfloat16(), targets, mask).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bert_prob": 1.2}, "bert_prob must be between 0 and 1, found 1.2"),
        ({"bert_prob": 0.8, "gap_sentence_prob": 0.3}, "at most 1, found 1.1"),
        ({"average_block_length": 0}, "average_block_length must be above 0"),
        ({"max_block_length": 1}, "max_block_length must be 2 or more"),
        ({"bert_ratio": 0}, "bert_ratio must be above 0"),
        ({"bert_prob": 0, "gap_sentence_prob": 1, "gap_sentence_ratio": 0}, "gap_sentence_ratio must be above 0"),
        ({"short_seq_prob": 0.1, "max_seq_length": 33}, "max_seq_length must be 34 or more, found 33"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective(**changes)


def test_settings_at_their_limits() -> None:
    """Blocks that are mostly shorter than one token are drawn as the publisher draws them: at least one token."""
    assert Objective(average_block_length=0.5, max_block_length=2).average_block_length == 0.5
    assert Objective(short_seq_prob=0.1, max_seq_length=34).max_seq_length == 34


def test_bad_tokens() -> None:
    few: dict[str, Any] = {"enc": 1, "eos": 2, "mask": 3, "sop": 4, "eop": 5}
    with pytest.raises(InputError, match="four different ids"):
        InfillingTokens(**few | {"sop": 3})
    with pytest.raises(InputError, match="eos must be 0 or more, found -1"):
        InfillingTokens(**few | {"eos": -1})
    bare = InfillingTokens(**few)
    InfillingCollator(Objective(task_mask=True), bare)  # token spans alone need no other mask
    for objective, missing in (
        (Objective(bert_prob=0.5, task_mask=True), "gmask"),
        (Objective(bert_prob=0.5, gap_sentence_prob=0.5, task_mask=True), "smask"),
        (Objective(bert_prob=0.5, gap_sentence_prob=0.5), "sentence_ends"),
        (Objective(block_mask_prob=0.1), "dblock"),
    ):
        with pytest.raises(InputError, match=f"needs .*{missing}"):
            InfillingCollator(objective, bare)


def test_bad_samples() -> None:
    collate = InfillingCollator(Objective(), TOKENS)
    with pytest.raises(InputError, match="at least one sample"):
        collate([], 0)
    with pytest.raises(InputError, match="sample 1 must hold 3 tokens"):
        collate([[TOKENS.enc, *[5] * 20], [5] * 20], 0)
    with pytest.raises(InputError, match="lengths differ"):
        collate([[TOKENS.enc, *[5] * 20]], 0, loss_masks=[[1]])


def test_sentence_ends_by_surface() -> None:
    assert sentence_end_ids(["<n>", "▁a", ".", "吗？", "b", "…x", "a\n", ","]) == {2, 3, 5, 6}
