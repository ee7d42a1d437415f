"""Calibrated recipes: programs compute what their numbers say, and a wrong number shows.

A value on the border between two integers may fall to either side, and what follows is another answer: one token, in
one case of a check. A defect shows in every case. So the median over cases is judged beside the check's own bound.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from glm_export import api
from glm_export.artifacts.program import WEIGHTS, OnnxProgram, load_program
from glm_export.calibration import recipes, simulate
from glm_export.calibration.quantization import KV_SCALES, QUANTIZATION, SMOOTHING
from glm_export.exporter.options import dialects_of
from glm_export.graphs import dialects
from glm_export.proof.check import CheckReport
from glm_export.proof.compare import TOLERANCES
from glm_export.sessions.onnxruntime import runtime
from tests.helpers.recorded import recorded_again
from tests.helpers.walked import GPTQ, Made, one_thread, tracing_once, weight_bytes

PROMISE = 1e-3
"""Share of an output's largest value that a Q/DQ program may be off in the usual case; measured: 1e-6."""
GOLDEN = ("chatglm2", "chatglm", "glm", "glm4_hf")
Numbers = dict[str, np.ndarray]


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "usable_threads", lambda: 1)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with tracing_once():
        yield Made(tmp_path_factory.mktemp("quantized"))


def usual(report: CheckReport) -> float:
    """What most cases need, of the output that needs most."""
    needed: dict[str, list[float]] = defaultdict(list)
    for output in report.parity.outputs:
        needed[output.output].append(output.required_tolerance)
    return max(map(median, needed.values()))


def explicit(name: str, dialect: str) -> bool:
    """Whether a program says Q/DQ; ONNX Runtime's own products round their inputs as they like."""
    return recipes.load(name).layers is None or dialect != "ort"


def combinations() -> Iterator[tuple[str, str, str]]:
    """Every recipe in every dialect it names for one model; for others those that need ranges, where more is to see.

    ONNX Runtime's own products: tests/calibration/test_recipes.py.
    """
    for recipe in map(recipes.load, recipes.names()):
        for dialect in dialects_of(recipe):
            own = not explicit(recipe.name, dialect)
            if recipe.needs != "nothing" or not own:
                yield "demo", recipe.name, dialect
            # The canonical dialect's products are TensorRT's; what int8-static does, int8-smoothquant does as well.
            contained = own or (dialect == "onnx" and "tensorrt" in dialects_of(recipe))
            if recipe.needs != "nothing" and recipe.name != "int8-static" and not contained:
                yield from ((source, recipe.name, dialect) for source in GOLDEN)


# -- programs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "name", "dialect"), combinations())
def test_programs_compute_what_their_numbers_say(source: str, name: str, dialect: str, made: Made) -> None:
    program = made.program(source, name, dialect)
    report = api.check(program, made.checkpoint(source))
    assert report.passed
    assert report.recipe == name
    if explicit(name, dialect):
        recipe = recipes.load(name).carried_by(dialects.load(dialect).can)
        # Where every token of a long prompt is judged, one of its values is on a border in most cases.
        assert usual(report) <= (recipe.usual if recipe.smoothing_with_ranges else PROMISE)
        assert recipe.rounds_activations or recipe.kv or report.parity.required_tolerance <= TOLERANCES["float32"]


@pytest.mark.parametrize("name", ["int4-awq", GPTQ])
@pytest.mark.parametrize("source", ["demo", *GOLDEN])
def test_the_runtimes_own_products_are_exact_where_they_round_no_inputs(
    source: str, name: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges, recipe, exact = made.ranges(source, name), recipes.load(name), {"accuracy_level": 0}
    layers, head = (replace(form, **exact) for form in (recipe.layers, recipe.head))
    monkeypatch.setattr(recipes, "load", lambda _: replace(recipe, layers=layers, head=head))
    checkpoint = made.checkpoint(source)
    program = api.export(checkpoint, tmp_path / "out", dialect="ort", recipe=name, ranges=ranges)
    assert api.check(program, checkpoint).parity.required_tolerance <= TOLERANCES["float32"]


def test_a_recipe_may_find_nothing_to_do(made: Made, tmp_path: Path) -> None:
    """No input is worth scaling, or every layer is excluded: the program is still one of its recipe."""
    checkpoint, ranges = made.checkpoint("chatglm2"), made.ranges("chatglm2", "every")
    ones = {name: np.ones_like(value) for name, value in ranges.tensors.items() if name.endswith("/awq")}
    plain = replace(ranges, tensors={**ranges.tensors, **ones})
    program = api.export(checkpoint, tmp_path / "awq", recipe="int4-awq", ranges=plain)
    assert api.check(program, checkpoint).passed
    excluded = dict.fromkeys(ranges.inputs, "spared")
    program = api.export(checkpoint, tmp_path / "static", recipe="int8-static", ranges=ranges, excluded=excluded)
    assert api.check(program, checkpoint).parity.required_tolerance <= TOLERANCES["float32"]


def test_tokens_are_rounded_without_ranges_and_smoothed_with_them(made: Made, tmp_path: Path) -> None:
    """Each kept beside its program, so that a check computes with it."""
    checkpoint = made.checkpoint("demo")
    plain = api.export(checkpoint, tmp_path / "plain", dialect="ort", recipe="int8-token")
    smoothed = made.program("demo", "int8-token", "ort")
    assert not (plain.folder / QUANTIZATION).exists()
    assert {name for name in load_file(smoothed.folder / QUANTIZATION) if name.endswith(SMOOTHING)}
    for program in (plain, smoothed):
        report = api.check(program, checkpoint)
        assert report.passed
        assert usual(report) <= PROMISE
    changed = planted(smoothed, tmp_path / "planted", leave_out_smoothing)
    assert usual(api.check(changed, checkpoint)) > PROMISE


@pytest.mark.parametrize("factor", [100 / 127, 1.05])
def test_control_tokens_rounded_to_another_number_of_steps_show(
    factor: float, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = simulate.round_each_token
    monkeypatch.setattr(simulate, "round_each_token", lambda values: rounded(values * factor) / factor**2)
    report = api.check(made.program("demo", "int8-token", "ort"), made.checkpoint("demo"))
    assert usual(report) > PROMISE


@pytest.mark.parametrize("name", ["int8-smoothquant", "int8-kv", GPTQ])
def test_experts_too(name: str, made: Made) -> None:
    report = api.check(made.program("glm4_moe", name, "onnx"), made.checkpoint("glm4_moe"))
    assert report.passed
    assert usual(report) <= PROMISE


@pytest.mark.parametrize(
    ("source", "name", "dialect", "dtype"),
    [
        ("demo", "int8-static", "tensorrt", "float16"), ("demo", GPTQ, "tensorrt", "float16"),
        ("demo", "int8-smoothquant", "onnx", "bfloat16"), ("demo", "fp8", "onnx", "bfloat16"),
        ("demo", "int8-kv", "ort", "float16"), ("glm", "int8-smoothquant", "onnx", "float16"),
    ],
)  # fmt: skip
def test_half_precision(source: str, name: str, dialect: str, dtype: str, made: Made) -> None:
    program = made.program(source, name, dialect, dtype)
    report = api.check(program, made.checkpoint(source))
    assert report.passed
    assert (program.recipe, program.dtype, report.parity.dtype) == (name, dtype, dtype)
    # The dtype's rounding shows in every case, and no more than that.
    assert 1e-5 < report.usual < 0.15


# -- controls ------------------------------------------------------------------------------------------


def planted(program: OnnxProgram, folder: Path, change: Callable[[Numbers], None]) -> OnnxProgram:
    """A copy whose numbers, which a check's reference computes with, are others."""
    shutil.copytree(program.folder, folder)
    numbers = load_file(folder / QUANTIZATION)
    change(numbers)
    save_file(numbers, folder / QUANTIZATION)
    recorded_again(folder)
    return load_program(folder)


def scaled(name: str, factor: float) -> Callable[[Numbers], None]:
    def change(numbers: Numbers) -> None:
        assert f"{name}.weight/input_scale" in numbers
        numbers[f"{name}.weight/input_scale"] *= np.float32(factor)

    return change


def exchange(numbers: Numbers) -> None:
    numbers[KV_SCALES] = numbers[KV_SCALES][:, ::-1].copy()


def leave_out_smoothing(numbers: Numbers) -> None:
    for name in [name for name in numbers if name.endswith(SMOOTHING)]:
        del numbers[name]


@pytest.mark.parametrize("source", ["demo", "chatglm"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        # The threshold in place of the step.
        ("int8-static", scaled("layers.1.attention.dense", 127.0)), ("int8-kv", exchange),
        ("int8-smoothquant", leave_out_smoothing), ("int4-awq", leave_out_smoothing),
    ],
)  # fmt: skip
def test_control_wrong_numbers_fail(
    source: str, name: str, change: Callable[[Numbers], None], made: Made, tmp_path: Path
) -> None:
    report = api.check(
        planted(made.program(source, name, "onnx"), tmp_path / "planted", change), made.checkpoint(source)
    )
    assert not report.passed
    assert usual(report) > PROMISE


@pytest.mark.parametrize("source", ["demo", "chatglm"])
@pytest.mark.parametrize("place", ["layers.0.attention.qkv", "layers.1.attention.dense", "layers.1.mlp.down"])
def test_control_a_scale_that_is_slightly_off_shows(source: str, place: str, made: Made, tmp_path: Path) -> None:
    """By five hundredths: within the bound of activations that are rounded, and far from the usual case."""
    program = planted(made.program(source, "int8-static", "onnx"), tmp_path / "planted", scaled(place, 1.05))
    assert usual(api.check(program, made.checkpoint(source))) > 5 * PROMISE


@pytest.mark.parametrize("name", ["int8-static", "int8-weights"])
def test_control_integers_that_are_off_by_one_show(name: str, made: Made, tmp_path: Path) -> None:
    """All of one weight's."""
    folder = tmp_path / "planted"
    shutil.copytree(made.program("demo", name, "onnx").folder, folder)
    offset, length = weight_bytes(load_program(folder), "layers.1.mlp.gate_up.weight.packed")
    integers = np.memmap(folder / WEIGHTS, np.int8, "r+", offset, (length,))
    integers += integers < 127
    integers.flush()
    recorded_again(folder)
    report = api.check(folder, "demo")
    assert usual(report) > PROMISE
    assert not report.passed
