"""Float16 programs of models that float16 cannot hold: what overflows stays float32, and nothing else does.

ONNX Runtime computes float16 on a CPU in float32 and drops most of the rounding between; so ``check`` alone does not
see an overflow there. The controls look at every value a program makes, and compute a few programs to the letter with
ONNX's reference evaluator.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file

from glm_export import api
from glm_export.calibration.corpus.load import load_corpus
from glm_export.calibration.float16_range import beyond_float16, summary
from glm_export.calibration.layerwise.calibrate import calibrate
from glm_export.errors import InputError
from glm_export.exporter import export as exporter
from glm_export.exporter.export import program_graph
from glm_export.exporter.options import ResolvedOptions, resolve_options
from glm_export.exporter.plan import plan_export
from glm_export.graphs.precision.activation_names import annotate
from glm_export.graphs.rewriter import overflowing
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.proof.compare import TOLERANCES
from glm_export.sessions.torch import TorchSession
from tests.helpers import rtx
from tests.helpers.overflowing import (
    PLANTS,
    Measured,
    Weights,
    every_value,
    export,
    first_call,
    measured,
    not_finite,
    operators,
)

DIALECTS = ("onnx", "ort", "portable", "tensorrt")


@pytest.fixture(scope="module")
def fitting(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A model with nothing planted."""
    return measured(tmp_path_factory.mktemp("fitting"), Weights("chatglm2"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Measured]:
    """A model with an overflow, and its ranges, made once."""
    made: dict[str, Measured] = {}

    def make(name: str) -> Measured:
        if name not in made:
            family, plant, _ = PLANTS[name]
            model = Weights(family)
            plant(model)
            made[name] = measured(tmp_path_factory.mktemp("planted"), model)
        return made[name]

    return make


# -- what is kept in float32 ---------------------------------------------------------------------------


@pytest.mark.parametrize(("plant", "dialects"), [
    ("residual", DIALECTS), ("product", ("ort",)), ("gelu", ("tensorrt",)), ("queries", ("onnx",)),
    ("normed queries", ("tensorrt",)), ("sandwich", ("ort",)), ("alpha", ("portable",)), ("experts", ("onnx",)),
    ("scores", ("onnx", "tensorrt")),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_overflows_stays_float32(
    plant: str, dialects: tuple[str, ...], planted: Callable[[str], Measured], tmp_path: Path
) -> None:
    """And the program says what the reference says; without ranges, values of it are not finite."""
    model, expected = planted(plant), PLANTS[plant][2]
    for dialect in dialects:
        program = export(model, tmp_path / dialect, dialect)
        assert not_finite(every_value(program)) == []
        assert set(program.manifest["float32_islands"]) == expected
        report = api.check(program, model[0])
        assert report.passed, f"{dialect} needs {report.parity.required_tolerance}"
        if plant == "residual" or dialect == dialects[0]:
            control = export(model, tmp_path / f"{dialect}-control", dialect, ranges=False)
            assert not_finite(every_value(control))
            assert control.manifest["float32_islands"] == []
            # Casts come and go; of all else there is as much as before.
            counts = [Counter(operators(made)) for made in (control, program)]
            assert {**counts[0], "Cast": 0} == {**counts[1], "Cast": 0}


@pytest.mark.parametrize(("plant", "dialect"), [("product", "portable"), ("residual", "portable"), ("scores", "onnx")])
def test_float16_to_the_letter(plant: str, dialect: str, planted: Callable[[str], Measured], tmp_path: Path) -> None:
    """ONNX's reference evaluator rounds after every operator: NaN comes out where nothing is kept in float32."""
    model = planted(plant)
    made = [export(model, tmp_path / str(ranges), dialect, ranges=ranges) for ranges in (False, True)]
    feeds = first_call(made[0])
    with np.errstate(all="ignore"):
        control, logits = (ReferenceEvaluator(str(program.model_path)).run(None, feeds)[0] for program in made)
    assert np.isnan(control).any()
    with TorchSession(model[0]) as reference:
        expected = reference.run({n: v.astype(np.float32) if v.dtype.kind == "f" else v for n, v in feeds.items()})
    assert np.abs(logits - expected["logits"]).max() < TOLERANCES["float16"] * np.abs(expected["logits"]).max()


def test_islands_are_no_larger_than_they_must_be(planted: Callable[[str], Measured], tmp_path: Path) -> None:
    """A gated MLP: its input and two weights are cast up, once each, and what comes out is cast down."""
    program = export(planted("product"), tmp_path / "out", "onnx")
    nodes = onnx.load(str(program.model_path), load_external_data=False).graph.node
    single, half, mlp = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, "layers.0.mlp"
    casts = [(node.input[0], node.attribute[0].i) for node in nodes if node.op_type == "Cast"]
    raised = [f"{mlp}_norm/RMSNormalization", f"{mlp}.gate_up.weight", f"{mlp}.down.weight"]
    assert sorted(casts) == sorted([*((name, single) for name in raised), (f"{mlp}.down/MatMul", half)])
    wide = {name for name, value in every_value(program).items() if value.dtype == np.float32}
    assert wide == {f"{name}.float32" for name in raised} | {
        f"{mlp}{name}"
        for name in (
            "/Sigmoid",
            "/Mul",
            "/Mul_1",
            ".down/MatMul",
            *(f".gate_up/{n}" for n in ("MatMul", "Split.0", "Split.1")),
        )
    }


def test_group_query_attention_keeps_scores_by_itself(planted: Callable[[str], Measured], tmp_path: Path) -> None:
    """Its kernels sum scores in float32, and CUDA's take no float32 queries: it stays as it is."""
    model = planted("causal scores")
    program = export(model, tmp_path / "out", "ort")
    assert program.manifest["float32_islands"] == []
    feeds = first_call(program)
    values = every_value(program)
    assert not_finite(values) == []
    with TorchSession(model[0]) as reference:
        expected = reference.prefill(
            prefill_feeds([Prompt(ids=tuple(map(int, feeds["input_ids"][0])))], model[0].config)
        )
    assert np.abs(values["logits"][:, -1] - expected[:, -1]).max() < TOLERANCES["float16"] * np.abs(expected).max()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nothing_changes_where_everything_fits(dialect: str, fitting: Measured, tmp_path: Path) -> None:
    """To the last byte; and in other dtypes nothing ever changes."""
    assert resolve_options(fitting[0].config, dialect=dialect, dtype="float16", ranges=fitting[1]).maxima == {}
    with_ranges, without = (
        export(fitting, tmp_path / str(ranges), dialect, ranges=ranges).model_path.read_bytes()
        for ranges in (True, False)
    )
    assert with_ranges == without


def test_other_dtypes_hold_everything(planted: Callable[[str], Measured]) -> None:
    checkpoint, ranges = planted("residual")
    for dtype in ("float32", "bfloat16"):
        assert resolve_options(checkpoint.config, dtype=dtype, ranges=ranges).maxima == {}


# -- what leaves the program ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["head", "layers.1.key"])
def test_logits_keys_and_values_must_fit(place: str, fitting: Measured, tmp_path: Path) -> None:
    checkpoint, ranges = fitting
    name = f"{place}/maximum" if place == "head" else f"{place}/channel_maxima"

    def settled(largest: float) -> ResolvedOptions:
        changed = replace(ranges, tensors={**ranges.tensors, name: np.array([largest], np.float32)})
        return resolve_options(checkpoint.config, dtype="float16", ranges=changed)

    assert settled(65000.0).maxima == {}
    with pytest.raises(InputError, match=rf"{place}: .* 70,000; export with --dtype bfloat16"):
        settled(70000.0)
    target = replace(settled(1.0), maxima={place: 70000.0})
    with pytest.raises(InputError, match=rf"{place} does not fit it; export with --dtype bfloat16"):
        program_graph(checkpoint.config, target, plan_export(checkpoint, tmp_path, "float16").stored)


# -- with quantization ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted_demo(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The embedded model, one product of gates far too large."""
    root = tmp_path_factory.mktemp("demo")
    shutil.copytree(api.open_checkpoint("demo").folder, root / "demo")
    tensors = load_file(root / "demo" / "model.safetensors")
    mlp = "transformer.encoder.layers.2.mlp"
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    wide[f"{mlp}.dense_h_to_4h.weight"][512:] *= 2e3
    wide[f"{mlp}.dense_4h_to_h.weight"] /= 2e3
    save_file(wide, root / "demo" / "model.safetensors")
    checkpoint = api.open_checkpoint(root / "demo")
    with TorchSession(checkpoint) as session:
        corpus = load_corpus("poems", session.tokenizer, checkpoint.config, max_samples=8)
    return checkpoint, calibrate(checkpoint, corpus, root / "ranges")


@pytest.mark.parametrize(("recipe", "dialect"), [
    ("int4-weights", "ort"), ("int8-static", "tensorrt"), ("int8-kv", "ort"),
])  # fmt: skip
def test_quantized_programs_have_islands_too(recipe: str, dialect: str, planted_demo: Measured, tmp_path: Path) -> None:
    program = export(planted_demo, tmp_path / "out", dialect, recipe=recipe)
    assert program.manifest["float32_islands"] == ["layers.2.mlp.down.input"]
    assert not_finite(every_value(program)) == []
    assert api.check(program, planted_demo[0]).passed


def test_smoothing_counts(planted_demo: Measured) -> None:
    """What is left of an input after smoothing fits; what smoothing leaves alone does not."""
    checkpoint, ranges = planted_demo
    assert list(resolve_options(checkpoint.config, dtype="float16", ranges=ranges).maxima) == [
        "layers.2.mlp.down.input"
    ]
    assert resolve_options(checkpoint.config, dtype="float16", ranges=ranges, recipe="int8-smoothquant").maxima == {}


# -- TensorRT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("plant", "recipe"), [
    ("residual", None), ("experts", None), ("product", "int8-static"), ("product", "int4-weights"),
])  # fmt: skip
def test_tensorrt_rtx_builds_islands(
    plant: str, recipe: str | None, planted: Callable[[str], Measured], tmp_path: Path
) -> None:
    rtx.require_installed()
    program = export(planted(plant), tmp_path / "out", "tensorrt", recipe=recipe)
    built = rtx.build_program(program)
    assert built.network["CAST"] >= operators(program)["Cast"]
    assert not built.record.decomposed
    assert built.size > 0


def test_control_tensorrt_rtx_has_no_attention_in_float32(planted: Callable[[str], Measured], tmp_path: Path) -> None:
    """Where scores overflow, an engine needs bfloat16: no fused kernel takes it. If this fails, one does.

    Several kernels are no way out: TensorRT-RTX 1.7 crashes where one attention is taken apart beside another in
    float16.
    """
    rtx.require_installed()
    program = export(planted("scores"), tmp_path / "out", "tensorrt")
    with pytest.raises(InputError, match=r"attention\.scores is kept in float32; export with --dtype bfloat16"):
        rtx.build_program(program)


# -- what is called what -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["chatglm2", "glm4", "glm4_moe", "chatglm", "glm_infilling"])
def test_places_are_the_values_that_were_measured(family: str, tmp_path: Path) -> None:
    """What a place's values reach in the program is what calibration measured there; parts of them are no larger."""
    checkpoint, ranges = measured(tmp_path, Weights(family), rows=1)
    maxima = ranges.maxima() | {
        name.removesuffix("/channel_maxima"): float(values.max())
        for name, values in ranges.tensors.items()
        if name.endswith((".key/channel_maxima", ".value/channel_maxima"))
    }
    plan = plan_export(checkpoint, tmp_path, "float32")
    model = program_graph(checkpoint.config, resolve_options(checkpoint.config), plan.stored)
    annotate(model, maxima)
    largest = {name: np.abs(v).max() for name, v in every_value(exporter.export(checkpoint, tmp_path / "out")).items()}
    reached: dict[str, list[float]] = {}
    for value in (value for node in model.graph for value in node.outputs):
        name = overflowing(value)
        if name is not None:
            reached.setdefault(name, []).append(largest[value.name] / maxima[name])
    for place, ratios in reached.items():
        # Without its bias a product may be a little larger.
        assert max(ratios) < 1.5, place
        assert any(ratio == pytest.approx(1, rel=1e-3) for ratio in ratios), place
    assert len(reached) >= 11 * checkpoint.config.num_layers


def test_overflows_leave_headroom() -> None:
    maxima = {"a": 65504.0, "b": 32752.0, "c": 32753.0, "d": 0.0}
    assert beyond_float16(maxima) == {"a": 65504.0, "c": 32753.0}
    assert beyond_float16(maxima, headroom=1.0) == {}
    for headroom in (0.5, float("nan")):
        with pytest.raises(InputError, match="factor of at least 1"):
            beyond_float16(maxima, headroom)


@pytest.mark.parametrize(("maxima", "line"), [
    ({}, "every tensor fits float16"),
    ({"a": 81234.4}, "1 tensor exceeds float16's 65504: a 81,234"),
    ({"a": 40000.0, "b": 50000.0}, "2 tensors come close to float16's 65504: b 50,000, a 40,000"),
    ({"a": 40000.0, "b": 1e6}, "2 tensors exceed or come close to float16's 65504: b 1,000,000, a 40,000"),
    (dict.fromkeys("abc", 1e5), "3 tensors exceed float16's 65504: a 100,000, b 100,000, c 100,000"),
])  # fmt: skip
def test_summary(maxima: dict[str, float], line: str) -> None:
    assert summary(maxima) == line
