"""Numbers beside the verdict: of predictions, of columns, and of texts; padding is in none of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polygraphy.comparator import IterationResult, RunResults

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.inputs.call_layout import OwnLengths
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.proof.compare import BEGINNING_TOLERANCES, REASONS, TOLERANCES, compare_runs
from glm_export.proof.measures.greedy import ALONE, GREEDY_TOKENS, IN_COMPANY, greedy_agreement
from glm_export.proof.measures.positions import MOST_COLUMNS, position_errors
from glm_export.proof.measures.tokens import compare_predictions, margin, token_parity
from tests.helpers.altered_session import Altered
from tests.helpers.golden_data import Golden
from tests.helpers.planted import plant

LENGTHS = (5, 3)
VOCABULARY = 7


def padded_call(family: str) -> dict[str, np.ndarray]:
    """Two rows, the second padded by two columns."""
    config = api.open_checkpoint(Golden(family).folder).config
    context = 3 if config.prefix_mask else 0
    prompts = [Prompt(ids=tuple(range(1, n + 1)), context_length=min(context, n - 1)) for n in LENGTHS]
    return prefill_feeds(prompts, config).named()


def runs(reference: dict[str, Any], candidate: dict[str, Any]) -> RunResults:
    return RunResults([("a", [IterationResult(reference, 0.0, "a")]), ("b", [IterationResult(candidate, 0.0, "b")])])


def outputs(seed: int = 0) -> dict[str, np.ndarray]:
    random, (rows, width) = np.random.default_rng(seed), (len(LENGTHS), max(LENGTHS))
    cache = random.standard_normal((rows, 2, width, 4)).astype(np.float32)
    return {
        "logits": random.standard_normal((rows, width, VOCABULARY)).astype(np.float32),
        "present.0.key": cache, "present.0.value": cache[::-1].copy(),
    }  # fmt: skip


def changed(values: dict[str, np.ndarray], places: Sequence[tuple[str, tuple[Any, ...]]]) -> dict[str, np.ndarray]:
    """A copy with 1 added at each place."""
    copy = {name: value.copy() for name, value in values.items()}
    for name, place in places:
        copy[name][place] += 1
    return copy


PADDING = [("logits", (1, slice(0, 2))), ("present.0.key", (1, slice(None), slice(0, 2)))]
REAL = [("logits", (1, 2, 0)), ("present.0.key", (1, 0, 2, 0))]


@pytest.mark.parametrize("family", ["chatglm2", "glm"])
def test_padding_is_never_counted(family: str) -> None:
    """Whatever stands in padding moves no number, and the same change beside it moves each."""
    call, same = padded_call(family), outputs()
    expected = [("case", call)]
    for places, counts in ((PADDING, False), (REAL, True)):
        results = runs(same, changed(same, places))
        tokens = token_parity(results, expected)
        assert [token.position for token in tokens] == [*range(5), *range(3)]
        assert [token.token for token in tokens] == [*range(1, 6), *range(1, 4)]
        assert any(token.kl > 0 for token in tokens) is counts
        errors = {one.output: one for one in position_errors(results, expected)}
        assert (errors["logits"].worst > 0, errors["present.0.key"].worst > 0) == (counts, counts)
        assert errors["present.0.value"].worst == 0
        parity = compare_runs(results, ["case"], "float32", real=[OwnLengths.of(call)])
        found = {one.output: one for one in parity.outputs}
        assert (found["logits"].signal_to_noise != np.inf) is counts
        assert (found["present.0.key"].cosine == pytest.approx(1, abs=1e-9)) is not counts
        assert not parity.passed  # what is judged has not changed


def test_a_column_that_is_padding_in_every_row_has_no_error() -> None:
    call, same = padded_call("chatglm2"), outputs()
    alone = {name: array[1:] for name, array in call.items()}
    results = runs(*({name: array[1:] for name, array in same.items()} for _ in range(2)))
    (logits, *_) = position_errors(results, [("case", alone)])
    assert logits.errors == (None, None, 0.0, 0.0, 0.0)


def test_an_error_stands_where_it_was_made() -> None:
    call, same = padded_call("chatglm2"), outputs()
    results = runs(same, changed(same, [("present.0.key", (0, 1, 3, 2))]))
    by_name = {one.output: one for one in position_errors(results, [("case", call)])}
    key = by_name["present.0.key"]
    assert (key.layer, key.part, key.past) == (0, "key", 0)
    assert [n for n, error in enumerate(key.errors) if error] == [3]
    np.testing.assert_allclose(key.worst, 1 / np.abs(same["present.0.key"]).max(), rtol=1e-6)


def test_many_columns_are_told_by_their_worst() -> None:
    columns = 2 * MOST_COLUMNS + 5
    call = {
        "input_ids": np.zeros((1, 1), np.int64), "attention_mask": np.ones((1, columns), np.int64),
    }  # fmt: skip
    key = np.ones((1, 1, columns, 2), np.float32)
    other = key.copy()
    other[0, 0, columns - 1, 1] = 3
    (found,) = position_errors(runs({"present.4.key": key}, {"present.4.key": other}), [("case", call)])
    assert (found.columns_each, len(found.errors), found.past) == (3, -(-columns // 3), columns - 1)
    assert found.errors[-1] == 2
    assert set(found.errors[:-1]) == {0.0}


def test_figures_of_one_prediction() -> None:
    reference, candidate = np.array([2.0, 1.0, -1.0]), np.array([0.5, 1.0, -1.0])
    p, q = (np.exp(side) / np.exp(side).sum() for side in (reference, candidate))
    found = compare_predictions(reference, candidate)
    np.testing.assert_allclose(found["kl"], (p * np.log(p / q)).sum(), rtol=1e-12)
    assert (found["expected"], found["found"], found["rank"]) == (0, 1, 2)
    assert (found["reference_margin"], found["candidate_margin"]) == (1.0, 0.5)
    same = compare_predictions(reference, reference + 3)
    assert (same["rank"], same["kl"]) == (1, pytest.approx(0, abs=1e-15))
    tie = compare_predictions(np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    assert (tie["found"], tie["rank"], tie["candidate_margin"]) == (0, 2, 0.0)
    lost = compare_predictions(reference, np.array([0.0, np.nan, 0.0]))
    assert (lost["kl"], lost["rank"], lost["candidate_margin"]) == (np.inf, 3, None)


def test_margins_need_two_tokens() -> None:
    assert margin(np.array([3.0], np.float32)) == np.inf
    assert margin(np.array([3.0, -1.0, 2.5], np.float32)) == 0.5


def test_another_shape_is_left_to_the_verdict() -> None:
    call, same = padded_call("chatglm2"), outputs()
    other = {name: array[:, :, :2] for name, array in same.items()}
    assert token_parity(runs(same, other), [("case", call)]) == ()
    assert position_errors(runs(same, other), [("case", call)]) == ()


def test_each_dtype_says_why_its_bound_is_what_it_is() -> None:
    assert REASONS.keys() == TOLERANCES.keys()
    assert all(BEGINNING_TOLERANCES[dtype] <= bound for dtype, bound in TOLERANCES.items())


def test_a_report_has_every_number(exported: Callable[[str], OnnxProgram]) -> None:
    report = api.check(exported("chatglm2"), Golden("chatglm2").folder)
    said = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert said["schema"] == "glm-export/check/1"
    prefill = [token for token in said["tokens"] if token["case"] == "prefill"]
    assert [token["position"] for token in prefill] == list(range(33))
    assert all(token["rank"] == 1 and token["top1"] and token["kl"] < 1e-9 for token in said["tokens"])
    batch = [token for token in said["tokens"] if token["case"] == "padded batch"]
    assert len(batch) == 17 + 9 + 2
    worst = {one["output"]: max(filter(None, one["errors"]), default=0) for one in said["positions"]}
    assert len(worst) == 1 + 2 * exported("chatglm2").config.num_layers
    assert all(error < 3e-6 for error in worst.values())
    for output in report.parity.outputs:
        assert output.cosine == pytest.approx(1, abs=1e-9)
        assert output.signal_to_noise is not None
        assert output.signal_to_noise > 100
    assert report.greedy is not None
    assert {text.how for text in report.greedy.texts} == {IN_COMPANY, ALONE}
    assert all(text.parted is None and len(text.reference) == GREEDY_TOKENS for text in report.greedy.texts)


def test_a_defect_shows_in_each_number(exported: Callable[[str], OnnxProgram], tmp_path: Path) -> None:
    report = api.check(
        plant(exported("chatglm2"), "half-split rotary", tmp_path / "planted"), Golden("chatglm2").folder
    )
    assert max(token.kl for token in report.tokens) > 1e-6
    assert min(output.signal_to_noise or 0 for output in report.parity.outputs) < 40
    assert min(output.cosine or 0 for output in report.parity.outputs) < 0.9999
    # The first layer's keys are turned wrongly, its values are those of the embedding.
    first = {one.part: one.worst for one in report.positions if one.case == "prefill" and one.layer == 0}
    assert first["key"] > 1e-2 > 1e-5 > first["value"]
    # Position 0 is not turned at all.
    (key,) = [one for one in report.positions if (one.case, one.layer, one.part) == ("prefill", 0, "key")]
    assert (key.errors[0] or 0) < 1e-5 < (key.errors[1] or 0)


def test_texts_that_part_say_where_and_by_how_little(demo_program: OnnxProgram) -> None:
    step, pushed = 3, 1e6

    def push(logits: np.ndarray, steps: int) -> np.ndarray:
        if steps == step:
            logits = logits.copy()
            logits[..., 5] = pushed
        return logits

    with api.load_session("demo") as reference, api.load_session(demo_program) as inner:
        same = greedy_agreement(reference, inner)
        assert same.equal == same.total == 2 * 3 * GREEDY_TOKENS
        with_defect = greedy_agreement(reference, Altered(inner, push))
    assert with_defect.equal < with_defect.total == same.total
    for text in with_defect.texts:
        assert text.parted == step
        assert text.candidate[step] == 5 != text.reference[step]
        assert text.candidate_margin is not None
        assert text.candidate_margin > pushed / 2 > 100 > (text.reference_margin or 0) > 0
        assert not text.near_tie
    (first, *_) = with_defect.texts
    assert first.to_json()["near_tie"] is False


def test_a_flip_at_a_tie_is_called_one(demo_program: OnnxProgram) -> None:
    """Two tokens that the reference holds for equally likely: the candidate takes the other, by last bits."""

    def leveller(tip: float) -> Callable[[np.ndarray, int], np.ndarray]:
        def level(logits: np.ndarray, steps: int) -> np.ndarray:
            if steps == 2:
                logits = logits.copy()
                logits[..., 5], logits[..., 6] = 30.0 + tip, 30.0
            return logits

        return level

    with api.load_session("demo") as one, api.load_session(demo_program) as other:
        report = greedy_agreement(Altered(one, leveller(1e-5)), Altered(other, leveller(-1e-5)))
    assert {text.parted for text in report.texts} == {2}
    assert all(text.near_tie for text in report.texts)
    np.testing.assert_allclose([text.reference_margin for text in report.texts], 1e-5, rtol=0.1)


def test_a_candidate_without_numbers_writes_none_alike(demo_program: OnnxProgram) -> None:
    with api.load_session("demo") as reference, api.load_session(demo_program) as inner:
        report = greedy_agreement(reference, Altered(inner, lambda logits, _: np.full_like(logits, np.nan)))
    assert (report.equal, report.total) == (0, 2 * 3 * GREEDY_TOKENS)
    assert all(text.candidate == () and text.parted == 0 and not text.near_tie for text in report.texts)
