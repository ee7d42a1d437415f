"""Keys and values as int8, besides what any recipe does to weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from glm_export import api
from glm_export.artifacts.program import KV_CACHE_DTYPE, MODEL, WEIGHTS, load_program
from glm_export.calibration import recipes
from glm_export.calibration.quantization import KV_SCALES, QUANTIZATION
from glm_export.calibration.recipe import KV_TOLERANCE
from glm_export.certificates.predicates import provenance
from glm_export.cli import cli
from glm_export.deployment.inspect import program_facts
from glm_export.errors import InputError
from glm_export.exporter.options import ExportOptions, resolve_options
from glm_export.graphs import dialects
from glm_export.serving.engine import Engine
from glm_export.serving.request import Request
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.spec.batch_invariance import BatchInvariance
from tests.helpers.golden_data import Golden
from tests.helpers.recorded import recorded_again
from tests.helpers.walked import Made, tracing_once
from tests.serving.test_engine import CPU, SMALL, answers, drained, prompt_of

BESIDE = [
    ("demo", "int8-token", "ort", BatchInvariance.EXACT),
    ("demo", "int8-token", "onnx", BatchInvariance.CLOSE),
    ("demo", "int4-int8-prompt", "ort", BatchInvariance.NONE),
    ("glm", "int8-token", "ort", BatchInvariance.EXACT),
    ("glm4_moe", "int8-weights", "ort", BatchInvariance.CLOSE),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with tracing_once():
        yield Made(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize(("source", "recipe", "dialect", "level"), BESIDE)
def test_beside_a_recipe(
    source: str, recipe: str, dialect: str, level: BatchInvariance, made: Made, tmp_path: Path
) -> None:
    checkpoint = made.checkpoint(source)
    program = api.export(
        checkpoint,
        tmp_path / "program",
        dialect=dialect,
        recipe=recipe,
        ranges=made.ranges(source, recipe),
        kv_cache_dtype="int8",
    )
    assert (program.recipe, program.manifest[KV_CACHE_DTYPE]) == (recipe, "int8")
    assert {spec.dtype for spec in program.signature.inputs if spec.is_cache} == {"int8"}
    report = api.check(program, checkpoint)
    assert report.passed
    assert program.manifest["batch_invariance"] == level.value
    assert f"`{recipe}`; keys and values kept as int8" in (program.folder / "README.md").read_text(encoding="utf-8")
    assert program.summary()["recipe"] == f"{recipe}, keys and values int8"
    assert program_facts(program.folder)[KV_CACHE_DTYPE] == "int8"
    assert provenance(program.manifest)["buildDefinition"]["externalParameters"][KV_CACHE_DTYPE] == "int8"


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_control_other_scales_fail(dialect: str, made: Made, tmp_path: Path) -> None:
    """The check's reference rounds keys and values otherwise than the program."""
    checkpoint, ranges = made.checkpoint("demo"), made.ranges("demo", "int8-token")
    program = api.export(
        checkpoint, tmp_path / "program", dialect=dialect, recipe="int8-token", ranges=ranges, kv_cache_dtype="int8"
    )
    planted = Path(shutil.copytree(program.folder, tmp_path / "planted"))
    numbers = load_file(planted / QUANTIZATION)
    numbers[KV_SCALES] = numbers[KV_SCALES][:, ::-1].copy() * 4
    save_file(numbers, planted / QUANTIZATION)
    recorded_again(planted)
    assert not api.check(load_program(planted), checkpoint).passed


def test_without_a_recipe_it_is_that_of_keys_and_values(made: Made, tmp_path: Path) -> None:
    checkpoint, ranges = made.checkpoint("demo"), made.ranges("demo", "int8-kv")
    option, recipe = (
        api.export(checkpoint, tmp_path / name, dialect="ort", ranges=ranges, **asked)
        for name, asked in (("option", {"kv_cache_dtype": "int8"}), ("recipe", {"recipe": "int8-kv"}))
    )
    for name in (MODEL, WEIGHTS, QUANTIZATION):
        assert option.manifest["sha256"][name] == recipe.manifest["sha256"][name]
    assert option.recipe == recipe.recipe == "int8-kv"
    assert KV_CACHE_DTYPE not in made.program("demo", "int8-token", "ort").manifest


def test_texts_are_written_with_a_quarter_of_the_cache(made: Made, tmp_path: Path) -> None:
    ranges = made.ranges("demo", "int8-token")
    program = api.export(
        made.checkpoint("demo"), tmp_path / "out", dialect="ort", recipe="int8-token", ranges=ranges,
        kv_cache_dtype="int8", logits="recent",
    )  # fmt: skip
    with api.load_session(program) as session:
        poem = "千山鸟飞绝，万径人踪灭。\n孤舟蓑笠翁，独钓寒江雪。"
        assert api.generate(session, poem[:13]).strip() == poem[13:]
        assert api.generate(session, f"{poem}\n{poem[:12]}", speculate=True).strip() == poem[13:]


def test_rows_of_a_server_are_the_same_in_company(made: Made, tmp_path: Path) -> None:
    """Chunks see a rounded past, so a row's pieces are kept the same: then it has the same tokens beside others."""
    ranges = made.ranges("demo", "int8-token")
    program = api.export(
        made.checkpoint("demo"), tmp_path / "out", dialect="ort", recipe="int8-token", ranges=ranges,
        kv_cache_dtype="int8",
    )  # fmt: skip
    with OrtSession(program, CPU) as session:
        requests = [
            Request(key=str(index), prompt=prompt_of(session, index, 3 + 7 * index), max_new_tokens=12)
            for index in range(4)
        ]

        def written(asked: list[Request]) -> dict[str, tuple[list[int], str]]:
            engine = Engine(session, replace(SMALL, exact=True, step_tokens=32), prefix_bytes=0)
            for request in asked:
                engine.submit(request)
            return answers(drained(engine))

        alone = {key: found for request in requests for key, found in written([request]).items()}
        assert written(requests) == alone
        assert {len(tokens) for tokens, _ in alone.values()} == {12}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"recipe": "int8-token"}, "int8-token with --kv-cache-dtype int8 needs ranges; run 'glm-export calibrate'"),
        ({}, "recipe int8-kv with --kv-cache-dtype int8 needs ranges"),
        (
            {"recipe": "int8-token", "dialect": "tensorrt"},
            "needs --dialect onnx or ort or portable; found dial",
        ),
        ({"recipe": "int8-token", "dtype": "bfloat16"}, "needs --dtype float16 or float32; found dtype bfloat16"),
        ({"recipe": "int8-token", "kv_cache_dtype": "int4"}, "kv_cache_dtype 'int4' is unknown; known: int8"),
    ],
)
def test_what_does_not_go_together(asked: dict[str, str], said: str) -> None:
    config = api.open_checkpoint("demo").config
    with pytest.raises(InputError, match=said):
        resolve_options(config, ExportOptions(**({"dialect": "ort", "kv_cache_dtype": "int8"} | asked)))


def test_integers_that_are_kept_stay_alone(tmp_path: Path) -> None:
    source = Golden("folders").folder / "int4_chatglm"
    with pytest.raises(InputError, match="--recipe keep keeps a source as it is, and --kv-cache"):
        api.export(source, tmp_path / "out", dialect="ort", recipe=recipes.KEEP, kv_cache_dtype="int8")


def test_on_the_command_line(made: Made, tmp_path: Path) -> None:
    out, ranges = str(tmp_path / "out"), str(made.ranges("demo", "int8-token").folder)
    asked = ["export", "demo", "--out", out, "--dialect", "ort", "--recipe", "int8-weights", "--ranges", ranges]
    assert CliRunner().invoke(cli, [*asked, "--kv-cache-dtype", "int8"], catch_exceptions=False).exit_code == 0
    assert load_program(Path(out)).manifest[KV_CACHE_DTYPE] == "int8"


@pytest.mark.parametrize(("dialect", "bound"), [("ort", 0.08), ("onnx", KV_TOLERANCE)])
def test_what_is_granted(dialect: str, bound: float) -> None:
    """Where weights alone are rounded, keys and values are all that may fall to either side of a border."""
    carried = recipes.load("int8-weights").with_int8_cache().carried_by(dialects.load(dialect).can)
    assert carried.tolerance == bound
