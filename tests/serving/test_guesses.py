"""Guesses of what a row writes: read together, judged by its own draws, and never seen in its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.generation.sampling import Sampling
from glm_export.serving.engine import Engine
from glm_export.serving.request import Request
from glm_export.sessions.onnxruntime.session import OrtSession
from tests.serving.test_engine import CPU, SMALL, alone, answers, drained, prompt_of


@pytest.mark.parametrize(("wrong", "logits"), [(0.0, "all"), (0.3, "all"), (0.3, "recent"), (1.0, "recent")])
def test_guesses_change_no_text(exported: Callable[..., OnnxProgram], wrong: float, logits: str) -> None:
    """Guessed by who knows the answers, a share of them changed; drawn texts as well, beside rows without guesses."""
    draw = np.random.default_rng(3)
    with OrtSession(exported("chatglm2", "ort", logits), CPU) as session:
        size = session.config.vocab_size
        requests = [
            Request(
                key=str(index),
                prompt=prompt_of(session, index, 3 + 4 * index),
                max_new_tokens=12,
                stop_ids=frozenset({7, 11}),
                sampling=Sampling() if index % 2 else Sampling(temperature=0.8, seed=index),
            )
            for index in range(5)
        ]
        expected = {request.key: alone(session, request) for request in requests}

        def guessing(request: Request) -> Request:
            begun, text = len(request.prompt.ids), [*expected[request.key][0], 7, -1, size]

            def guess(known: Sequence[int]) -> list[int]:
                right = text[len(known) - begun :][:3]
                return [int(draw.integers(size)) if draw.random() < wrong else token for token in right]

            return replace(request, drafts=guess)

        engine = Engine(session, replace(SMALL, step_tokens=12), prefix_bytes=1 << 20)
        for request in requests:
            engine.submit(request if request.key == "2" else guessing(request))
        assert answers(drained(engine)) == expected
        assert not engine.rows.keys
        assert engine.accepted <= engine.drafted
        assert {0.0: engine.accepted > 25, 0.3: engine.accepted > 5, 1.0: engine.accepted < 5}[wrong]
        # What was kept of finished rows is what they wrote: it begins others as if it had been read anew.
        assert engine.prefixes is not None
        again = replace(requests[4], key="again")
        hits = engine.prefixes.hits
        engine.submit(again)
        assert answers(drained(engine)) == {"again": expected["4"]}
        assert engine.prefixes.hits > hits


def test_no_guesses_where_they_cannot_be_judged(exported: Callable[..., OnnxProgram]) -> None:
    asked: list[int] = []

    def guess(known: Sequence[int]) -> list[int]:
        asked.append(len(known))
        return [5]

    for dialect, logits, options in (
        ("ort", "last", SMALL),
        ("onnx", "all", SMALL),
        ("ort", "all", replace(SMALL, exact=True)),
    ):
        with OrtSession(exported("chatglm2", dialect, logits), CPU) as session:
            request = Request(key="a", prompt=prompt_of(session, 1, 5), max_new_tokens=4, drafts=guess)
            engine = Engine(session, options)
            engine.submit(request)
            assert answers(drained(engine)) == {"a": alone(session, request)}
    assert not asked


def test_an_engine_that_guesses_by_itself(tmp_path: Path) -> None:
    """Poems whose rest stands in the prompt, beside one that is not there: the same texts in fewer steps."""
    poem = "千山鸟飞绝，万径人踪灭。\n孤舟蓑笠翁，独钓寒江雪。"
    program = api.export("demo", tmp_path / "program", dialect="ort", recipe="int8-token", logits="recent")
    with OrtSession(program, CPU) as session:
        texts = [f"{poem}\n{poem[:12]}", "床前明月光，疑是地上霜。", f"{poem}\n{poem[:6]}"]
        requests = [
            Request(
                key=str(index),
                prompt=session.prompt(session.encode(text)),
                max_new_tokens=(24, 6, 8)[index],
                stop_ids=api.stopping_for(session, 1).stop_ids,
                sampling=Sampling(temperature=0.7, seed=1) if index == 2 else Sampling(),
            )
            for index, text in enumerate(texts)
        ]
        expected = {request.key: alone(session, request) for request in requests}
        calls = {}
        for speculate in (False, True):
            engine = Engine(session, replace(SMALL, step_tokens=32), speculate=speculate)
            for request in requests:
                engine.submit(request)
            found, steps = [], 0
            while not engine.idle:
                found += engine.step()
                steps += 1
            assert answers(found) == expected
            calls[speculate] = steps
            assert (engine.accepted > 5) is speculate
    assert calls[True] < calls[False]


@pytest.mark.parametrize(
    ("dialect", "logits", "exact", "said"),
    [
        ("ort", "last", False, "export it with --logits recent"),
        ("ort", "recent", True, "--exact and rows that are padded together rule out"),
        ("onnx", "all", False, "--exact and rows that are padded together rule out"),
    ],
)
def test_an_engine_that_cannot_judge_guesses(
    exported: Callable[..., OnnxProgram], dialect: str, logits: str, exact: bool, said: str
) -> None:
    with OrtSession(exported("chatglm2", dialect, logits), CPU) as session, pytest.raises(InputError, match=said):
        Engine(session, replace(SMALL, exact=exact), speculate=True)
