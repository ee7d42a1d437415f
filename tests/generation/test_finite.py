"""Logits that are no numbers end a run: which step, which row, what to do; in every session and every verb."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from glm_export import api
from glm_export.artifacts.program import WEIGHTS, OnnxProgram
from glm_export.cli import cli
from glm_export.embedded import DEMO, DEMO_GLM, FOLDERS
from glm_export.errors import ComparisonFailedError, NonFiniteError
from glm_export.generation.finite import lost_rows
from glm_export.generation.generate import generate_ids, generate_steps
from glm_export.generation.infilling import continuation_log_probabilities
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping
from glm_export.proof.compare import EmptyComparisonError
from glm_export.sessions.session import Session
from glm_export.sessions.torch import TorchSession
from tests.helpers.altered_session import Altered
from tests.helpers.overflowing import PLANTS, Measured, Weights, corpus_of, export, measured
from tests.helpers.recorded import recorded_again

KINDS = ("torch", "onnx", "ort", "tensorrt", "portable")
GREEDY, SAMPLED = Sampling(), Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=1)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A model whose attention scores float16 cannot hold, with its ranges."""
    model = Weights("chatglm2")
    PLANTS["queries"][1](model)
    return measured(tmp_path_factory.mktemp("overflowing"), model)


@pytest.fixture(scope="module")
def sessions(overflowing: Measured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Session]]:
    root = tmp_path_factory.mktemp("programs")
    with ExitStack() as stack:
        made: dict[str, Session] = {"torch": stack.enter_context(TorchSession(overflowing[0], "float16"))}
        # portable says float16 as the others do, but in primitives.
        for dialect in KINDS[1:]:
            program = export(overflowing, root / dialect, dialect, ranges=False)
            made[dialect] = stack.enter_context(api.load_session(program))
        yield made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rows", [1, 3], ids=["alone", "batch"])
def test_a_float16_model_that_overflows_ends_with_the_way_out(
    kind: str, sampling: Sampling, rows: int, sessions: dict[str, Session]
) -> None:
    prompts = [sample.prompt for sample in corpus_of(sessions[kind].config).samples[:rows]]
    with pytest.raises(NonFiniteError, match=r"^step \d+.*, row \d: logits should be numbers, found NaN") as raised:
        generate_ids(sessions[kind], prompts, stopping=Stopping(max_new_tokens=4), sampling=sampling)
    out = "bfloat16 or float32 (--reference-dtype)" if kind == "torch" else "--ranges"
    assert out in str(raised.value)
    assert "float16" in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("dialect", ["onnx", "ort"])
def test_the_way_out_is_one(dialect: str, overflowing: Measured, tmp_path: Path) -> None:
    prompts = [sample.prompt for sample in corpus_of(overflowing[0].config).samples]
    with api.load_session(overflowing[0]) as session:
        expected = generate_ids(session, prompts, stopping=Stopping(max_new_tokens=8))
    for number, options in enumerate(({"ranges": True}, {"ranges": False, "dtype": "bfloat16"})):
        program = export(overflowing, tmp_path / str(number), dialect, **options)
        with api.load_session(program) as session:
            rows = generate_ids(session, prompts, stopping=Stopping(max_new_tokens=8))
        assert [len(row.ids) for row in rows] == [8] * 4
        assert np.mean([row.ids[0] == other.ids[0] for row, other in zip(rows, expected, strict=True)]) > 0.5


# -- where it happened -------------------------------------------------------------------------------------------------


def spoiled(session: Session, step: int, row: int, value: float = np.nan) -> Altered:
    def change(logits: np.ndarray, now: int) -> np.ndarray:
        logits = logits.copy()
        if now == step:
            logits[row, -1, 7] = value
        return logits

    return Altered(session, change)


@pytest.fixture(scope="module")
def demo(demo_program: OnnxProgram) -> Iterator[Session]:
    with api.load_session(demo_program) as session:
        yield session


def test_the_step_and_the_row_are_named_and_what_was_written_is_kept(demo: Session) -> None:
    prompts = [demo.encode(text) for text in ("千山鸟飞绝，万径人踪灭。", "春眠不觉晓，")]
    with pytest.raises(
        NonFiniteError, match=r"^step 1 \(the prompt\), row 1: .* found NaN \(onnxruntime onnx float32\)"
    ):
        generate_ids(spoiled(demo, 0, 1), prompts, stopping=Stopping())
    steps = generate_steps(spoiled(demo, 3, 0, np.inf), prompts, stopping=Stopping())
    assert [len(next(steps)[0].ids) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(NonFiniteError, match=r"^step 4, row 0: .* found infinite.*weights may hold NaN"):
        next(steps)


def test_a_row_that_has_ended_may_compute_what_it_likes(demo: Session) -> None:
    short, long = demo.encode("千山鸟飞绝，万径人踪灭。"), demo.encode("国破山河在，城春草木深。")
    stopping = api.stopping_for(demo, 60)
    ends = len(generate_ids(demo, [short], stopping=stopping)[0].ids)
    expected = generate_ids(demo, [short, long], stopping=stopping)
    assert len(expected[1].ids) > ends + 1
    rows = generate_ids(spoiled(demo, ends + 1, 0), [short, long], stopping=stopping)
    assert [row.ids for row in rows] == [row.ids for row in expected]


def test_minus_infinity_is_a_probability_of_0(demo: Session) -> None:
    prompt = demo.encode("千山鸟飞绝，万径人踪灭。")
    barred = Altered(demo, lambda logits, _: np.where(np.arange(logits.shape[-1]) == 7, -np.inf, logits))
    stopping = api.stopping_for(demo, 20)
    assert generate_ids(barred, [prompt], stopping=stopping) == generate_ids(demo, [prompt], stopping=stopping)
    logits = np.zeros((4, 3), np.float32)
    logits[1, 1], logits[2], logits[3, 0] = np.nan, -np.inf, -np.inf
    assert lost_rows(logits) == [1, 2]


def test_scores_are_of_numbers(demo: Session) -> None:
    prompt, labels = demo.encode("春"), [[5, 6], [7]]
    with pytest.raises(NonFiniteError, match="step 2, row 0"):
        continuation_log_probabilities(spoiled(demo, 1, 0), prompt, labels)
    # The second label is read to its end by then.
    assert np.isfinite(continuation_log_probabilities(spoiled(demo, 1, 1), prompt, labels)).all()


# -- every verb --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded models with NaN among their weights: as checkpoints, and as programs that were sound once."""
    root, folders = tmp_path_factory.mktemp("broken"), dict[str, Path]()
    for name in (DEMO, DEMO_GLM):
        program = api.export(name, root / f"{name}-program", dtype="float16")
        weights = np.fromfile(program.folder / WEIGHTS, np.uint8)
        weights[len(weights) // 2 :] = 0xFF
        weights.tofile(program.folder / WEIGHTS)
        recorded_again(program.folder)
        checkpoint = Path(shutil.copytree(FOLDERS[name], root / name))
        (path,) = (*checkpoint.glob("*.safetensors"), *checkpoint.glob("*.bin"))
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
        tensors[next(key for key in sorted(tensors) if key.endswith("layernorm.weight"))].fill_(math.nan)
        (save_file if path.suffix == ".safetensors" else torch.save)(tensors, path)
        folders |= {name: checkpoint, f"{name} program": program.folder}
    return folders


def fails(code: int, *arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    line: str = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: "), result.stderr
    assert "Traceback" not in result.output
    return line


@pytest.mark.parametrize("kind", ["", " program"], ids=["PyTorch", "ONNX Runtime"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", DEMO, "--prompt", "春眠"),
        ("generate", DEMO, "--prompt", "春眠", "--stream"),
        ("generate", DEMO, "--prompt", "春眠", "--prompt", "床前明月光，", "--temperature", "1", "--top-p", "0.9"),
        ("infill", DEMO_GLM, "--text", "床前明月光，[sMASK]"),
        ("score", DEMO_GLM, "--text", "床前", "--pattern", "{}明月[MASK]", "--labels", "光,风"),
        ("bench", DEMO, "--rounds", "1", "--prompt-tokens", "8", "--context", "8", "--new-tokens", "2"),
    ],
    ids=["generate", "stream", "sampled batch", "infill", "score", "bench"],
)
def test_every_verb_ends_with_2_and_the_way_out(arguments: tuple[str, ...], kind: str, broken: dict[str, Path]) -> None:
    verb, model, *rest = arguments
    line = fails(2, verb, broken[f"{model}{kind}"], *rest)
    assert "step 1 (the prompt), row 0: logits should be numbers, found NaN" in line
    assert ("--ranges" if kind else "the weights may hold NaN") in line


@pytest.mark.parametrize("kind", ["", " program"], ids=["PyTorch", "ONNX Runtime"])
def test_chat_says_so_for_every_question_and_ends_with_2(kind: str, broken: dict[str, Path]) -> None:
    result = CliRunner().invoke(cli, ["chat", str(broken[f"{DEMO}{kind}"])], input="春眠\n床前明月光，\n")
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 2
    assert all("step 1 (the prompt), row 0: logits should be numbers, found NaN" in line for line in lines)


def test_quality_says_which_side_it_is(broken: dict[str, Path]) -> None:
    options = ("--corpus", "poems", "--max-samples", "2")
    line = fails(1, "quality", broken[f"{DEMO} program"], "--against", DEMO, *options)
    assert "the program, sample" in line
    assert "--ranges" in line
    sound = broken[DEMO].parent / "sound"
    api.export(DEMO, sound, force=True)
    line = fails(2, "quality", sound, "--against", broken[DEMO], *options)
    assert "the reference, sample" in line
    assert "pytorch float32" in line


# -- check -------------------------------------------------------------------------------------------------------------


def test_check_fails_the_program_that_overflows(overflowing: Measured, tmp_path: Path) -> None:
    program = export(overflowing, tmp_path / "out", "onnx", ranges=False)
    report = api.check(program, overflowing[0])
    assert not report.passed
    assert report.not_finite is not None
    assert "onnxruntime is not finite in case 'prefill'" in report.not_finite
    assert "pytorch computes numbers there" in report.not_finite
    assert "--ranges" in report.not_finite
    assert report.to_json()["not_finite"] == report.not_finite
    result = CliRunner().invoke(cli, ["check", str(program.folder), "--against", str(overflowing[0].folder)])
    assert result.exit_code == 1
    assert report.not_finite in result.stdout.replace("\n", "")
    kept = export(overflowing, tmp_path / "kept", "onnx")
    assert api.check(kept, overflowing[0]).not_finite is None


def test_keys_beyond_float16_are_the_programs_fault(tmp_path: Path) -> None:
    """The reference was blamed for pasts that had become infinite on their way into the program's dtype."""
    model = Weights("chatglm2")
    rows = slice(model.config.q_size + model.config.kv_size, model.config.q_size + 2 * model.config.kv_size)
    model.scale(["layers.0.attention.qkv.weight", "layers.0.attention.qkv.bias"], 3e4, rows)
    model.scale(["layers.0.attention.dense.weight"], 1 / 3e4)
    found = measured(tmp_path, model)
    program = export(found, tmp_path / "out", "onnx", ranges=False)
    with pytest.raises(
        ComparisonFailedError, match=r"fit the program's float16, which ends at 65504, found .* in the ref"
    ):
        api.check(program, found[0])
    assert api.check(export(found, tmp_path / "wide", "onnx", ranges=False, dtype="bfloat16"), found[0]).passed


def test_a_reference_that_overflows_is_told_what_it_lacks(overflowing: Measured, tmp_path: Path) -> None:
    program = export(overflowing, tmp_path / "out", "onnx", ranges=False, dtype="float32")
    with pytest.raises(EmptyComparisonError, match=r"reference .*(not finite).*float32"):
        api.check(program, overflowing[0], reference_dtype="float16")
    assert api.check(program, overflowing[0]).passed


def test_a_checkpoint_with_nan_is_named_as_the_side_at_fault(
    broken: dict[str, Path], demo_program: OnnxProgram, exported: Callable[[str], OnnxProgram]
) -> None:
    line = fails(2, "check", demo_program.folder, "--against", broken[DEMO])
    assert "the reference" in line
    assert "export" in line
    facts = json.loads((demo_program.folder / "manifest.json").read_text())
    assert facts["dtype"] == "float32"
