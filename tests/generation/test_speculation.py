"""Texts written several tokens a step are the texts written one by one, over every kind of cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError, NonFiniteError
from glm_export.generation import drafted
from glm_export.generation.drafted import draft_options
from glm_export.generation.drafts import DraftOptions
from glm_export.generation.generate import Generation, generate_ids, generate_steps
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.proof.cases import random_prompt
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from tests.helpers.altered_session import Altered
from tests.helpers.golden_data import Golden
from tests.sessions.conftest import exported

__all__ = ["exported"]

CPU = ["CPUExecutionProvider"]
TIE = 1e-4
"""Two logits this close are equally likely: which is chosen may depend on the width of a call."""
GREEDY = Sampling()
DRAWN = Sampling(temperature=0.9, top_p=0.95, seed=4)
# Guesses cost nothing, so that many are made.
EAGER = DraftOptions(column_cost=0.0)


@pytest.fixture(
    scope="module",
    params=["ort", "ort, all", "ort, GLM", "onnx", "static", "pytorch", "int8-token"],
)
def session(
    request: pytest.FixtureRequest, exported: Callable[..., OnnxProgram], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    kind: str = request.param
    if kind == "pytorch":
        made: Session = api.load_session(Golden("chatglm2").folder)
    elif kind.startswith("int8"):
        out = tmp_path_factory.mktemp("speculation") / kind
        made = OrtSession(api.export("demo", out, dialect="ort", recipe=kind, logits="recent"), CPU)
    else:
        dialect = {"onnx": "onnx", "static": "tensorrt"}.get(kind, "ort")
        logits = "recent" if kind in ("ort", "ort, GLM") else "all"
        made = OrtSession(exported("glm" if "GLM" in kind else "chatglm2", dialect, logits), CPU)
    with made:
        yield made


class Knowing:
    """Guesses by who knows the answers, a share of them changed, for one row after another."""

    def __init__(
        self, session: Session, answers: list[Generation], wrong: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._size, self._wrong = session.config.vocab_size, wrong
        self._random = np.random.default_rng(3)
        self._rows = iter(answers)
        self.guesses = self.steps = 0
        monkeypatch.setattr(drafted, "PromptLookup", lambda _: self._guessing(next(self._rows)))

    def _guessing(self, row: Generation) -> Callable[[list[int], int], list[int]]:
        text = [*row.prompt.ids, *row.ids, 7]

        def guess(known: list[int], most: int) -> list[int]:
            changed = self._random.random(most) < self._wrong
            right = text[len(known) :][: min(most, 5)]
            self.guesses, self.steps = self.guesses + len(right), self.steps + 1
            others = self._random.integers(self._size, size=len(right))
            return [
                int(other) if change else token for token, other, change in zip(right, others, changed, strict=False)
            ]

        return guess


def prompts_of(session: Session, count: int) -> list[Prompt]:
    """Random ones."""
    random = np.random.default_rng(5)
    return [random_prompt(random, 3 + index % 9, session.config) for index in range(count)]


def moved_at_once(session: Session, row: Generation, same: int, logits_V: np.ndarray) -> float:
    """How far logits are from those of a call that reads the prompt and so many tokens behind it at once."""
    feeds = session.feeds([Prompt(ids=(*row.prompt.ids, *row.ids[:same]))])
    return float(np.abs(feeds.last_logits(session.prefill(feeds))[0] - logits_V).max())


def require_same(
    session: Session, rows: list[Generation], others: list[Generation], sampling: Sampling = GREEDY
) -> int:
    """Rows are the same but where two tokens are equally likely; how many are not.

    A recipe that rounds activations moves a token's logits with the width of a call, where 1e-7 decides between two
    steps. A draw may fall on either side of that, whatever the tokens' own logits.
    """
    flips = 0
    for row, other in zip(rows, others, strict=True):
        if (row.ids, row.finish_reason) == (other.ids, other.finish_reason):
            continue
        same = next(at for at, pair in enumerate(zip(row.ids, other.ids, strict=False)) if pair[0] != pair[1])
        feeds = session.feeds([row.prompt])
        logits_V = feeds.last_logits(session.prefill(feeds))[0]
        for token in row.ids[:same]:
            feeds = feeds.next_step([token], session.last_position(feeds))
            logits_V = feeds.last_logits(session.decode(feeds))[0]
        tie = abs(float(logits_V[row.ids[same]] - logits_V[other.ids[same]])) <= TIE
        rounds = isinstance(session, OrtSession) and session.program.recipe is not None
        assert tie or (rounds and sampling is DRAWN and moved_at_once(session, row, same, logits_V) > TIE)
        flips += 1
    return flips


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_texts_are_the_same(session: Session, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone and beside each other, greedy and drawn, whatever was guessed."""
    together = session.signature.own_lengths
    prompts, flips, guesses, steps, tokens = prompts_of(session, 12), 0, 0, 0, 0
    stopping = Stopping(max_new_tokens=18, stop_ids=frozenset({7, 11}))
    for sampling in (GREEDY, DRAWN):
        for group in (prompts[:3], prompts[3:5], prompts[6:]) if together else [[prompt] for prompt in prompts[:6]]:
            expected = generate_ids(session, group, stopping=stopping, sampling=sampling)
            knowing = Knowing(session, expected, wrong, monkeypatch)
            found = generate_ids(session, group, stopping=stopping, sampling=sampling, drafts=EAGER)
            flips += require_same(session, expected, found, sampling)
            guesses, steps = guesses + knowing.guesses, steps + knowing.steps
            tokens += sum(len(row.ids) for row in found)
    assert flips <= 1
    assert guesses > tokens / 3
    assert {0.0: steps < 0.6 * tokens, 0.3: steps < 0.9 * tokens, 1.0: steps > 0.8 * tokens}[wrong]


def test_a_step_writes_several_tokens(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams hand out what a step wrote; a row ends within a step, at its limit or its stop id."""
    prompt = prompts_of(session, 1)[0]
    whole = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=24))
    for most in (1, 2, 7, 24):
        Knowing(session, whole, 0.0, monkeypatch)
        stopping = Stopping(max_new_tokens=most)
        steps = [len(rows[0].ids) for rows in generate_steps(session, [prompt], stopping=stopping, drafts=EAGER)]
        assert steps[-1] == most
        assert most < 7 or max(np.diff(steps)) == min(6, most - 1)
    stop = whole[0].ids[15]
    Knowing(session, whole, 0.0, monkeypatch)
    stopping = Stopping(max_new_tokens=24, stop_ids=frozenset({stop}))
    (row,) = generate_ids(session, [prompt], stopping=stopping, drafts=EAGER)
    assert (row.ids, row.finish_reason) == (whole[0].ids[: whole[0].ids.index(stop)], "stop")


@pytest.mark.parametrize("recipe", [None, "int8-token"])
def test_a_poem_said_twice(recipe: str | None, tmp_path: Path) -> None:
    """The real guesses of a model that knows its text: what stands in the prompt is written many tokens a step."""
    poem = "千山鸟飞绝，万径人踪灭。\n孤舟蓑笠翁，独钓寒江雪。"
    program = api.export("demo", tmp_path / "program", dialect="ort", recipe=recipe, logits="recent")
    with OrtSession(program, CPU) as session:
        text = f"{poem}\n{poem[:12]}"
        plain = api.generate(session, text)
        stream = generate_steps(
            session, [session.encode(text)], stopping=api.stopping_for(session, 128), drafts=draft_options(session)
        )
        lengths = [len(rows[0].ids) for rows in stream]
        assert api.generate(session, text, speculate=True) == plain
        assert api.generate(session, [text, "床前明月光，"], speculate=True) == api.generate(
            session, [text, "床前明月光，"]
        )
    assert plain.strip() == "孤舟蓑笠翁，独钓寒江雪。"
    assert len(lengths) < lengths[-1]


def test_refused_guesses_that_stay_would_be_seen(
    exported: Callable[..., OnnxProgram], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the cut, what was refused is read on from."""
    with OrtSession(exported("chatglm2", "ort", "recent"), CPU) as session:
        (prompt,), stopping = prompts_of(session, 1), Stopping(max_new_tokens=24)
        expected = generate_ids(session, [prompt], stopping=stopping)
        Knowing(session, expected, 0.3, monkeypatch)

        def uncut(feeds: Feeds, row: int, length: int) -> Feeds:
            return feeds

        session.truncate = uncut  # type: ignore[method-assign]
        found = generate_ids(session, [prompt], stopping=stopping, drafts=EAGER)
    assert found[0].ids != expected[0].ids


def test_the_context_ends_where_it_ends(exported: Callable[..., OnnxProgram]) -> None:
    with OrtSession(exported("chatglm2", "tensorrt", "all"), CPU) as session:
        prompt = Prompt(ids=(5, 6, 7) * 18)
        expected = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=100))
        found = generate_ids(session, [prompt], stopping=Stopping(max_new_tokens=100), drafts=EAGER)
        assert (found[0].ids, found[0].finish_reason) == (expected[0].ids, "context")


def test_logits_that_are_no_numbers_end_it(exported: Callable[..., OnnxProgram]) -> None:
    with OrtSession(exported("chatglm2", "onnx", "all"), CPU) as session:
        broken = Altered(session, lambda logits, step: logits * np.float32(np.nan if step == 2 else 1))
        broken.cache = session.cache
        with pytest.raises(NonFiniteError, match="step 3, row 0: logits should be numbers, found NaN"):
            generate_ids(broken, [prompts_of(session, 1)[0]], stopping=Stopping(max_new_tokens=24), drafts=EAGER)


@pytest.mark.parametrize(
    ("family", "dialect", "logits", "said"),
    [
        ("chatglm2", "ort", "last", "tells the last token's alone; export it with --logits recent"),
        ("glm", "onnx", "all", "padded together in this dialect, and nothing is guessed there"),
    ],
)
def test_what_cannot_judge_guesses(
    exported: Callable[..., OnnxProgram], family: str, dialect: str, logits: str, said: str
) -> None:
    with OrtSession(exported(family, dialect, logits), CPU) as session, pytest.raises(InputError, match=said):
        draft_options(session)


def test_several_rows_that_are_padded_together(exported: Callable[..., OnnxProgram]) -> None:
    with (
        OrtSession(exported("chatglm2", "onnx", "all"), CPU) as session,
        pytest.raises(InputError, match="2 prompts are padded together in this dialect, and guessed of one at a time"),
    ):
        generate_ids(session, prompts_of(session, 2), stopping=Stopping(), drafts=EAGER)


@pytest.mark.parametrize("recipe", ["int8-dynamic", "int4-weights", "int8-weights"])
def test_recipes_whose_tokens_round_each_other(tmp_path: Path, recipe: str) -> None:
    program = api.export("demo", tmp_path / recipe, dialect="ort", recipe=recipe, logits="recent")
    with (
        OrtSession(program, CPU) as session,
        pytest.raises(InputError, match="so guesses would change the text"),
    ):
        api.generate(session, "春", speculate=True)
