"""Where 4-bit weights decode and 8-bit ones read prompts, guesses are judged by the 8-bit ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from glm_export import api
from glm_export.errors import InputError
from glm_export.generation.drafted import draft_options
from glm_export.generation.drafts import PROMPT_FORM_COST
from glm_export.generation.generate import generate_steps
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.serving.engine import Engine
from glm_export.serving.request import Request
from glm_export.serving.scheduler import SchedulerOptions
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Logits
from glm_export.spec.weight_formats import PROMPT_TOKENS

CPU = ["CPUExecutionProvider"]
RECIPE = "int4-int8-prompt"
POEM = "千山鸟飞绝，万径人踪灭。\n孤舟蓑笠翁，独钓寒江雪。"


class Counted(OrtSession):
    """A session that keeps how many tokens each call behind a prompt had."""

    widths: list[int]

    def _decode(self, feeds: Feeds) -> Logits:
        self.widths = [*getattr(self, "widths", []), feeds.input_ids.size]
        return super()._decode(feeds)


@pytest.fixture(scope="module")
def two_forms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    out = tmp_path_factory.mktemp("second_form") / "program"
    with Counted(api.export("demo", out, dialect="ort", recipe=RECIPE, logits="recent"), CPU) as session:
        yield session


def logits_of(session: OrtSession, ids: list[int], read: int, width: int) -> NDArray[np.float32]:
    """Behind each token from a place on, read in calls so wide."""
    feeds, found = session.feeds([Prompt(ids=tuple(ids[:read]))]), []
    session.prefill(feeds)
    for begin in range(read, len(ids), width):
        feeds = feeds.next_tokens([ids[begin : begin + width]])
        found.append(session.decode(feeds)[0])
    return np.concatenate(found)


def test_the_finer_form_judges(two_forms: Counted, tmp_path: Path) -> None:
    """A call as wide as those of guesses is nearer to the unrounded model; one a token narrower is not: the control."""
    least = draft_options(two_forms).least + 1
    ids = (two_forms.encode(f"{POEM}\n{POEM}") * 3)[: 12 + 2 * least * (least - 1)]
    assert len(ids) > 4 * least
    ids = ids[: 12 + (len(ids) - 12) // least * least]
    with OrtSession(api.export("demo", tmp_path / "floats", dialect="ort", logits="recent"), CPU) as floats:
        exact = logits_of(floats, ids, 12, 1)
    errors = {
        width: float(np.sqrt(np.mean((logits_of(two_forms, ids, 12, width) - exact) ** 2)))
        for width in (1, least - 1, least)
    }
    assert errors[least] < 0.5 * errors[1]
    assert errors[least - 1] > 0.9 * errors[1]


def test_no_call_of_guesses_is_too_narrow_for_it(two_forms: Counted) -> None:
    text = f"{POEM}\n{POEM[:12]}"
    assert two_forms.prompt_form_tokens == PROMPT_TOKENS
    assert (draft_options(two_forms).least, draft_options(two_forms).call_cost) == (PROMPT_TOKENS, PROMPT_FORM_COST)
    two_forms.widths = []
    stream = generate_steps(
        two_forms,
        [two_forms.encode(text)],
        stopping=api.stopping_for(two_forms, 128),
        drafts=draft_options(two_forms),
    )
    written = [len(rows[0].ids) for rows in stream][-1]
    widths = two_forms.widths[1:]
    assert {width for width in widths if width <= PROMPT_TOKENS} <= {1}
    assert max(widths) > PROMPT_TOKENS
    assert len(widths) < written - 1
    assert api.generate(two_forms, text, speculate=True) == api.generate(two_forms, text)


def test_several_rows_leave_no_room_for_it(two_forms: Counted) -> None:
    """Two rows guess 7 tokens each at most; nothing is guessed then, and both texts are those without."""
    texts = [f"{POEM}\n{POEM[:12]}", "床前明月光，"]
    plain = api.generate(two_forms, texts)
    two_forms.widths = []
    assert api.generate(two_forms, texts, speculate=True) == plain
    assert set(two_forms.widths[1:]) == {2}


@pytest.mark.parametrize(("step_tokens", "guesses"), [(256, True), (PROMPT_TOKENS + 1, True), (PROMPT_TOKENS, False)])
def test_a_server_of_one_row(two_forms: Counted, step_tokens: int, guesses: bool) -> None:
    """A step with room for too few guesses has none."""
    prompt = Prompt(ids=tuple(two_forms.encode(f"{POEM}\n{POEM[:12]}")))
    stop_ids = api.stopping_for(two_forms, 128).stop_ids
    request = Request(key="0", prompt=prompt, max_new_tokens=128, stop_ids=stop_ids)
    written = []
    for speculate in (False, True):
        engine = Engine(two_forms, SchedulerOptions(max_rows=1, step_tokens=step_tokens), speculate=speculate)
        engine.submit(request)
        two_forms.widths, tokens = [], []
        while not engine.idle:
            tokens += [event.token for event in engine.step()]
        written.append(tokens)
        read = next(at for at, width in enumerate(np.cumsum(two_forms.widths)) if width == len(prompt.ids)) + 1
        decoding = set(two_forms.widths[read:])
        assert 1 in decoding
        assert (max(decoding) > PROMPT_TOKENS) == (speculate and guesses)
        assert not any(1 < width <= PROMPT_TOKENS for width in decoding)
    assert written[0] == written[1]


@pytest.mark.parametrize("gigabytes", [0.0, 0.0006])
def test_layers_without_the_form_judge_nothing(tmp_path: Path, gigabytes: float) -> None:
    program = api.export(
        "demo", tmp_path / "program", dialect="ort", recipe=RECIPE, prefill_memory=gigabytes, logits="recent"
    )
    with OrtSession(program, CPU) as session:
        assert session.prompt_form_tokens is None
        with pytest.raises(InputError, match="so guesses would change the text"):
            draft_options(session)
