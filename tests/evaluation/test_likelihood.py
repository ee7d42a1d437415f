"""Logits of texts that are given, and what follows them: held to the publishers' own numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from glm_export import api, load_session, logits, loglikelihood
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.sessions.session import Session
from tests.helpers.golden_data import BOUND, Golden, difference


@pytest.fixture(scope="module", params=["all", "last"])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Read at once, and token by token."""
    made = api.export("demo", tmp_path_factory.mktemp("likelihood") / "demo", logits=request.param)
    with load_session(made) as session:
        yield session


def test_logits_are_the_publishers(golden: Golden, exported: Callable[[str], OnnxProgram]) -> None:
    ids, expected_SV = golden["prefill.input_ids"][0], golden["prefill.logits"][0]
    with load_session(exported(golden.name)) as session:
        found_SV = logits(session, ids.tolist())
        assert difference(found_SV, expected_SV) <= BOUND
        assert difference(logits(session, ids[:-1].tolist()), expected_SV[1:]) > 100 * BOUND
        # What the publishers' logits say of the same ids.
        scores_SV = expected_SV.astype(np.float64)
        logprobs_SV = scores_SV - np.log(np.exp(scores_SV).sum(axis=-1, keepdims=True))
        expected = [logprobs_SV[at - 1, ids[at]] for at in range(3, len(ids))]
        (behind,) = loglikelihood(session, [(ids[:3].tolist(), ids[3:].tolist())])
        np.testing.assert_allclose(behind.logprobs, expected, atol=BOUND)
        assert behind.ids == tuple(ids[3:].tolist())
        assert behind.total == pytest.approx(sum(expected), abs=len(expected) * BOUND)


def test_both_ways_of_reading_agree(demo: Session) -> None:
    poem = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
    with load_session("demo") as reference:
        expected_SV = logits(reference, poem)
    assert difference(logits(demo, poem), expected_SV) <= BOUND
    assert len(expected_SV) == len(demo.encode(poem))


def test_what_a_poem_goes_on_with_is_likelier(demo: Session) -> None:
    first = "床前明月光，"
    known, other = loglikelihood(demo, [(first, "疑是地上霜。"), (first, "万径人踪灭。")])
    assert known.greedy
    assert not other.greedy
    assert known.total > -0.01 > -20 > other.total
    assert known.mean == known.total / len(known.ids)
    assert api.generate(demo, first, max_new_tokens=len(known.ids)) == "疑是地上霜。"


def test_a_blank_belongs_to_the_word_behind_it(demo: Session) -> None:
    """lm-evaluation-harness's rule (``TemplateLM._encode_pair``)."""
    apart, together = loglikelihood(demo, [("a ", "b"), ("a", " b")])
    assert apart == together
    assert apart.ids == tuple(demo.encode("a b")[len(demo.encode("a")) :])


def test_blanks_are_scored_as_cloze_is() -> None:
    with load_session("demo-glm") as session:
        text, label = "床前明月光，[MASK]。", "疑是地上霜"
        (found,) = loglikelihood(session, [(text, label)])
        (scored,) = api.score(session, text, pattern="{}", labels=[label])
        assert found.total == pytest.approx(scored.log_probability, abs=1e-4)
        context = session.encode(text)
        rows_SV = logits(session, [*context, *found.ids])
        assert rows_SV.shape[0] == 1 + len(found.ids)
        assert rows_SV[0].argmax() == found.ids[0] or not found.greedy


def test_the_whole_context_can_be_read(demo: Session) -> None:
    ids = [5] * demo.config.text_positions
    assert logits(demo, ids[:-1]).shape[0] == len(ids) - 1
    with pytest.raises(InputError):
        logits(demo, [*ids, 5])


@pytest.mark.parametrize(("context", "continuation"), [("床前", ""), ([5], []), ([], "月")])
def test_something_stands_before_and_behind(
    demo: Session, context: str | list[int], continuation: str | list[int]
) -> None:
    with pytest.raises(InputError):
        loglikelihood(demo, [(context, continuation)])
