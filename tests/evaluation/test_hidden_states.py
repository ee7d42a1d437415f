"""Hidden states of programs: the publishers' own, in every dialect; and vectors of texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_export import api, embed, hidden_states, load_session
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.deployment.build import build
from glm_export.errors import InputError
from glm_export.graphs import dialects
from glm_export.sessions.session import Session
from tests.helpers.golden_data import BOUND, CAUSAL, Golden, difference

TEXTS = ["床前明月光，疑是地上霜。", "千山鸟飞绝，万径人踪灭。\n孤舟蓑笠翁，独钓寒江雪。", "春"]


@pytest.mark.parametrize(
    ("name", "dialect"),
    [
        *((name, dialects.CANONICAL) for name in (*CAUSAL, "glm")),
        *(
            (name, dialect)
            for name in ("chatglm2", "glm4_moe", "glm")
            for dialect in dialects.names()
            if dialect != dialects.CANONICAL
        ),
    ],
)
def test_they_are_the_publishers(name: str, dialect: str, tmp_path: Path) -> None:
    golden, case = Golden(name), "prefill_mask" if name == "glm" else "prefill"
    program = api.export(golden.folder, tmp_path / "out", dialect=dialect, hidden_states="all")
    layers = program.config.num_layers
    assert program.signature.hidden_states == (*(f"hidden_states.{i}" for i in range(layers)), "last_hidden_state")
    with load_session(program) as session:
        found = hidden_states(session, golden[f"{case}.input_ids"][0].tolist())
    told = [found[f"hidden_states.{layer}"] for layer in range(layers)]
    expected = [golden[f"{case}.hidden.{layer}"][0] for layer in range(layers)]
    for have, want in zip(told, expected, strict=True):
        assert difference(have, want) <= BOUND * max(1.0, float(np.abs(want).max()))
    assert difference(found["last_hidden_state"], golden[f"{case}.final_hidden"][0]) <= BOUND
    # One layer off is another thing altogether.
    assert difference(told[1], expected[0]) > 100 * BOUND


def test_check_proves_them(tmp_path: Path, demo_checkpoint: Checkpoint) -> None:
    program = api.export(demo_checkpoint, tmp_path / "out", dialect="ort", hidden_states="last")
    report = api.check(program, demo_checkpoint)
    told = [output for output in report.parity.outputs if output.output == "last_hidden_state"]
    assert report.passed
    assert {output.case for output in told} == {output.case for output in report.parity.outputs}
    assert all(output.required_tolerance < output.tolerance for output in told)


def test_a_program_without_them_is_held_to_one_with_them(tmp_path: Path, demo_program: OnnxProgram) -> None:
    program = api.export("demo", tmp_path / "out", hidden_states="last")
    for one, other in ((program, demo_program), (demo_program, program)):
        assert api.check(one, other.folder).passed


@pytest.fixture(scope="module", params=["pytorch", "onnx", "ort, int8-token"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    out = tmp_path_factory.mktemp("hidden") / "demo"
    options: dict[str, Any] = {"dialect": "ort", "recipe": "int8-token"} if "ort" in request.param else {}
    source = "demo" if request.param == "pytorch" else api.export("demo", out, hidden_states="last", **options)
    with load_session(source) as made:
        yield made


def test_vectors_are_pooled_over_a_texts_own_tokens(session: Session) -> None:
    states = [hidden_states(session, text)["last_hidden_state"] for text in TEXTS]
    for pooling, expected in (
        ("mean", [states_SH.mean(axis=0) for states_SH in states]),
        ("last", [states_SH[-1] for states_SH in states]),
        ("first", [states_SH[0] for states_SH in states]),
    ):
        assert difference(embed(session, TEXTS, pooling=pooling), np.stack(expected)) <= BOUND
    lengths = np.linalg.norm(embed(session, TEXTS, normalize=True), axis=1)
    np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)
    assert [len(states_SH) for states_SH in states] == [len(session.encode(text)) for text in TEXTS]
    assert embed(session, []).shape == (0, session.config.hidden_size)


def test_recipes_change_vectors_little(session: Session) -> None:
    with load_session("demo") as reference:
        expected = embed(reference, TEXTS, normalize=True)
    cosines = (embed(session, TEXTS, normalize=True) * expected).sum(axis=1)
    assert cosines.min() > 0.999
    # Another text's vector is another.
    assert (expected[0] * expected[1]).sum() < 0.99


def test_what_has_none_says_how_to_get_them(demo_program: OnnxProgram, tmp_path: Path) -> None:
    with load_session(demo_program) as session, pytest.raises(InputError, match="export it with --hidden-states last"):
        embed(session, TEXTS)
    with pytest.raises(InputError, match="hidden_states 'middle' is unknown"):
        api.export("demo", tmp_path / "out", hidden_states="middle")


def test_texts_are_a_list_of_texts(session: Session) -> None:
    wrong: Any = TEXTS[0]
    with pytest.raises(InputError, match="put one in brackets"):
        embed(session, wrong)
    pooling: Any = "most"
    with pytest.raises(InputError, match="pooling 'most' is unknown; known: mean, last, first"):
        embed(session, TEXTS, pooling=pooling)


def test_an_engine_is_built_without_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 alone")
    program = api.export("demo", tmp_path / "out", dialect="tensorrt", hidden_states="last")
    with pytest.raises(InputError, match="export it without --hidden-states"):
        build(program.folder, tmp_path / "engine")
