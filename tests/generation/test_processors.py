"""Biases and the caller's own processors, token for token as transformers has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from glm_export import Sampling, api, load_session
from glm_export.errors import InputError
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.sessions.session import Session
from tests.helpers.golden_data import Golden

PROMPT, WRITTEN = list(range(5, 17)), 24


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(Golden("glm_hf").folder).eval()


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    out = tmp_path_factory.mktemp("processors") / "glm"
    with load_session(api.export(Golden("glm_hf").folder, out, dialect="ort", logits="recent")) as made:
        yield made


def by_transformers(model: PreTrainedModel, **options: Any) -> list[int]:
    with torch.no_grad():
        ids = model.generate(
            torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long), do_sample=False,
            min_new_tokens=WRITTEN, max_new_tokens=WRITTEN, **options,
        )  # fmt: skip
    return ids[0, len(PROMPT) :].tolist()


def by_us(session: Session, *, drafts: bool = False, **options: Any) -> list[int]:
    from glm_export.generation.drafted import draft_options

    # transformers' least length forbids the end's ids; here nothing ends a row.
    ends = dict.fromkeys(session.config.eos_token_ids, -np.inf)
    options["logit_bias"] = ends | options.get("logit_bias", {})
    guessed = draft_options(session) if drafts else None
    stopping = Stopping(max_new_tokens=WRITTEN)
    (row,) = generate_ids(session, [PROMPT], stopping=stopping, sampling=Sampling(**options), drafts=guessed)
    return row.ids


class Later(LogitsProcessor):
    """The text so far decides: what was written last is made unlikely, and its neighbour likely."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[0, input_ids[0, -1]] -= 3.0
        scores[0, (input_ids[0, -1] + 1) % scores.shape[-1]] += 2.0
        return scores


def later(ids: Sequence[int], scores_V: NDArray[np.float64]) -> NDArray[np.float64]:
    scores_V[ids[-1]] -= 3.0
    scores_V[(ids[-1] + 1) % len(scores_V)] += 2.0
    return scores_V


@pytest.mark.parametrize("drafts", [False, True], ids=["one by one", "guessed"])
def test_they_choose_what_transformers_chooses(session: Session, reference: PreTrainedModel, *, drafts: bool) -> None:
    plain = by_us(session, drafts=drafts)
    assert plain == by_transformers(reference)
    first, second = plain[:2]
    biased = by_us(session, drafts=drafts, logit_bias={first: -4.0, second: 2.5})
    assert biased == by_transformers(reference, sequence_bias={(first,): -4.0, (second,): 2.5})
    forbidden = by_us(session, drafts=drafts, logit_bias={first: -np.inf})
    assert forbidden == by_transformers(reference, bad_words_ids=[[first]])
    own = by_us(session, drafts=drafts, processors=(later,))
    assert own == by_transformers(reference, logits_processor=LogitsProcessorList([Later()]))
    # Penalties come before the caller's processors.
    penalized = by_us(session, drafts=drafts, processors=(later,), repetition_penalty=1.3)
    assert penalized == by_transformers(
        reference, logits_processor=LogitsProcessorList([Later()]), repetition_penalty=1.3
    )
    assert len({tuple(ids) for ids in (plain, biased, forbidden, own, penalized)}) == 5


def test_a_processor_that_gives_no_scores_is_named(session: Session) -> None:
    def halves(ids: Sequence[int], scores_V: NDArray[np.float64]) -> NDArray[np.float64]:
        return scores_V[: len(scores_V) // 2]

    def nothing(ids: Sequence[int], scores_V: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full_like(scores_V, -np.inf)

    for processor, said in ((halves, "halves should give 320 scores"), (nothing, "nothing leaves no token")):
        with pytest.raises(InputError, match=said):
            by_us(session, processors=(processor,))


@pytest.mark.parametrize("bias", [{-1: 1.0}, {"5": 1.0}, {5: np.inf}, {5: np.nan}, {5: "much"}])
def test_a_bias_that_is_none_is_refused(bias: Any) -> None:
    with pytest.raises(InputError, match="logit_bias maps ids"):
        Sampling(logit_bias=bias)


def test_a_bias_for_a_token_that_there_is_not_is_refused(session: Session) -> None:
    with pytest.raises(InputError, match="ends at 319"):
        by_us(session, logit_bias={320: 1.0})
