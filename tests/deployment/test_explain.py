"""`build --explain`: other people's commands, which are run here as far as a machine without a GPU goes."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from rich.console import Console

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.deployment.build import explain_requested
from glm_export.deployment.explain import inputs_script, is_strong, polygraphy_convert, trtexec, trtexec_decode
from glm_export.deployment.extras import LEAST_TENSORRT
from glm_export.deployment.request import BuildRequest
from glm_export.engines import vendor
from glm_export.engines.builder import BuildPlan
from glm_export.engines.options import UNPROVEN_IN_PLACE, BuildOptions
from glm_export.engines.vendor import BuildLog, TensorRT
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.spec.option import flag, options_of
from glm_export.terminal.engines import show_unproven
from tests.helpers import rtx
from tests.helpers.golden_data import Golden
from tests.terminal.test_cli import fails, run

ROOT = Path(__file__).parents[2]
TRTEXEC = set(
    re.findall(
        r"--\w+",
        "--onnx --saveEngine --loadEngine --skipInference --noTF32 --profilingVerbosity --stronglyTyped --fp16 --bf16 "
        "--int8 --decomposableAttentions --versionCompatible --refit --stripWeights --allowWeightStreaming "
        "--memPoolSize --builderOptimizationLevel --hardwareCompatibilityLevel --profile --minShapes --optShapes "
        "--maxShapes --useProfile --useCudaGraph --noDataTransfers --shapes",
    )
)
"""As TensorRT 10.15's ``samples/common/sampleOptions.cpp`` reads them."""

rtx.require_installed()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> OnnxProgram:
    """In a folder whose name a shell would take apart."""
    folder = tmp_path_factory.mktemp("explained") / "a program's"
    return api.export("demo", folder, dialect="tensorrt", dtype="float16", max_length=32)


@pytest.fixture(autouse=True)
def without_gpu() -> Iterator[None]:
    with rtx.no_gpu():
        yield


def plan_of(program: OnnxProgram, **options: object) -> BuildPlan:
    request = BuildRequest(
        source=program.folder, out=program.folder.parent / "engine", runtime=rtx.NAME, max_batch=2, **options
    )
    return explain_requested(request)[0]


def version(**names: object) -> TensorRT:
    """TensorRT with these names and no others."""
    return TensorRT(name=vendor.TENSORRT, module=SimpleNamespace(**names), version="8.6", logger=None, log=BuildLog())


STRONG = {"NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1)}


def test_the_script_repeats_the_build_up_to_where_an_engine_is_run(program: OnnxProgram, tmp_path: Path) -> None:
    """Its plan is as large as ours; ONNX Runtime's side of each comparison is there; then it takes a GPU."""
    out = tmp_path / "engine"
    assert run("build", program.folder, "--out", out, "--runtime", rtx.NAME, "--max-batch", 2).exit_code == 0
    result = run("build", program.folder, "--out", out, "--runtime", rtx.NAME, "--max-batch", 2, "--explain")
    assert result.exit_code == 0
    needs_gpu = [line for line in result.stdout.splitlines() if "--model-type engine" in line]
    assert [str(out.resolve() / "engine.plan") in line for line in needs_gpu] == [False, True, False, True]
    script = "\n".join(line for line in result.stdout.splitlines() if line not in needs_gpu)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": ""}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    repeated, ours = ((tmp_path / name).stat().st_size for name in ("repeat/repeat.plan", "engine/engine.plan"))
    assert repeated == pytest.approx(ours, rel=0.01)
    for name in ("prefill", "decode"):
        assert "logits" in json.dumps(json.loads((tmp_path / "repeat" / f"{name}.json").read_text()))
    # Without a GPU the engine's line gets as far as loading it, which no wrong option would.
    last = subprocess.run(
        ["bash", "-c", f"export POLYGRAPHY_USE_TENSORRT_RTX=1\n{needs_gpu[-1]}"],
        cwd=tmp_path / "repeat", env=environment | {"PYTHONPATH": str(tmp_path / "repeat")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Could not deserialize engine" in last.stdout + last.stderr


@pytest.mark.parametrize(("source", "dialect"), [("glm", "tensorrt"), ("glm", "portable"), ("chatglm2", "portable")])
def test_the_inputs_fit_together(source: str, dialect: str, tmp_path: Path) -> None:
    """Masks, positions and write indices of every kind of program; the numbers are ONNX Runtime's to make."""
    length = 32 if dialect == "tensorrt" else None
    made = api.export(Golden(source).folder, tmp_path / "program", dialect=dialect, max_length=length)
    plan = plan_of(made)
    names: dict[str, object] = {}
    exec(inputs_script(plan), names)
    session = onnxruntime.InferenceSession(str(made.model_path), providers=["CPUExecutionProvider"])
    for profile in plan.profiles:
        (feeds,) = names[profile.name]()
        assert {name: array.shape for name, array in feeds.items()} == {
            name: corners[1] for name, corners in profile.shapes.items()
        }
        logits = session.run(["logits"], feeds)[0]
        assert np.isfinite(logits).all()


def test_a_prompts_inputs_are_ours(program: OnnxProgram) -> None:
    """But for its text: positions from nothing, the last token last."""
    plan = plan_of(program)
    names: dict[str, object] = {}
    exec(inputs_script(plan), names)
    (feeds,) = names["prefill"]()
    ids = tuple(feeds["input_ids"][0].tolist())
    ours = prefill_feeds([Prompt(ids=ids, context_length=0)], program.config).named()
    assert np.array_equal(feeds["position_ids"], ours["position_ids"])
    assert feeds["last_token_ids"].tolist() == [len(ids) - 1]
    (decode,) = names["decode"]()
    assert decode["position_ids"].tolist() == [[16]]


def test_options_are_said_in_both_tongues(program: OnnxProgram) -> None:
    plan = plan_of(program)
    options = BuildOptions(
        version_compatible=True, hardware_compatible="ampere-plus", refittable=True, stripped=True,
        weight_streaming=True, workspace_bytes=500_000_000, optimization_level=1, compute_capabilities=("8.9", "12.0"),
    )  # fmt: skip
    asked = replace(plan, options=options)
    words = " ".join(polygraphy_convert(asked, version(**STRONG)))
    for option in (
        "--strongly-typed", "--version-compatible", "--refittable", "--strip-plan", "--weight-streaming",
        "--pool-limit workspace:500000000", "--builder-optimization-level 1",
        "--hardware-compatibility-level AMPERE_PLUS", "--compute-capabilities 8.9 12.0",
    ):  # fmt: skip
        assert option in words
        assert option not in " ".join(polygraphy_convert(plan, version(**STRONG))) or option == "--strongly-typed"
    spoken = " ".join(trtexec(asked, version(**STRONG)))
    for option in (
        "--stronglyTyped", "--versionCompatible", "--refit", "--stripWeights", "--allowWeightStreaming",
        "--memPoolSize=workspace:500000000B", "--builderOptimizationLevel=1", "--hardwareCompatibilityLevel=ampere+",
    ):  # fmt: skip
        assert option in spoken
    assert "--use-gpu" in polygraphy_convert(replace(plan, options=BuildOptions(compute_capabilities=("current",))),
                                             version(**STRONG))  # fmt: skip


def test_trtexec_is_told_what_it_knows_in_its_order(program: OnnxProgram) -> None:
    """Shapes belong to the profile they follow; a shape has an x where Polygraphy has a comma."""
    plan = plan_of(program)
    words = [word for group in trtexec(plan, version(**STRONG)) for word in shlex.split(group)]
    assert {word.partition("=")[0] for word in words[1:]} <= TRTEXEC
    first, second = words.index("--profile=0"), words.index("--profile=1")
    for start in (first, second):
        followers = [word.partition("=")[0] for word in words[start + 1 : start + 4]]
        assert followers == ["--minShapes", "--optShapes", "--maxShapes"]
    assert second == first + 4
    assert words[second + 2].startswith(
        "--optShapes=input_ids:1x32,position_ids:1x32,last_token_ids:1,past_key_values.0"
    )
    timed = [word for group in trtexec_decode(plan) for word in shlex.split(group)]
    assert {word.partition("=")[0] for word in timed[1:]} <= TRTEXEC
    assert "--useProfile=0" in timed


def test_versions_that_choose_dtypes_are_allowed_the_programs(program: OnnxProgram) -> None:
    """TensorRT 8.6 and 9; where typing is strong no precision is named, which both tools would refuse."""
    plan, old = plan_of(program), version()
    assert not is_strong(old)
    assert "--fp16" in polygraphy_convert(plan, old)
    assert "--fp16" in trtexec(plan, old)
    assert "--stronglyTyped" not in trtexec(plan, old)
    for words in (polygraphy_convert(plan, version(**STRONG)), trtexec(plan, version(**STRONG))):
        assert "--fp16" not in words


def test_what_cannot_be_explained(program: OnnxProgram, tmp_path: Path) -> None:
    line = fails(2, "build", "demo", "--out", tmp_path / "engine", "--runtime", rtx.NAME, "--explain")
    assert "--explain names the files of an exported folder, found a checkpoint; export it first" in line
    given = ("build", program.folder, "--out", tmp_path / "engine", "--runtime", rtx.NAME, "--implicit-int8")
    assert "leave --implicit-int8 out" in fails(2, *given, "--explain")
    assert list(tmp_path.iterdir()) == []


def test_no_comparison_in_bfloat16(program: OnnxProgram, tmp_path: Path) -> None:
    made = api.export("demo", tmp_path / "program", dialect="tensorrt", dtype="bfloat16", max_length=32)
    result = run("build", made.folder, "--out", tmp_path / "engine", "--runtime", rtx.NAME, "--explain")
    assert "polygraphy convert" in result.stdout
    assert "polygraphy run" not in result.stdout
    assert "No comparison: ONNX Runtime's CPU provider computes no bfloat16" in result.stdout


def test_what_a_columns_cost_is(program: OnnxProgram, tmp_path: Path) -> None:
    """Four layers, keys and values, 2 heads of 32 channels, 2 bytes: 1.024 MB for 1,000 columns."""
    plan = plan_of(program)
    assert plan.memory.bytes_of_columns(plan.limits.max_context) == 4 * 2 * 2 * 32 * 2 * 1000
    result = run("build", program.folder, "--out", tmp_path / "engine", "--runtime", rtx.NAME, "--explain")
    assert "1.0 MB for 1,000 columns of a row, 1.02 us on a GPU of 1 TB/s" in result.stderr
    assert "unproven" not in result.stderr
    grown = api.export("demo", tmp_path / "portable", dialect="portable")
    result = run("build", grown.folder, "--out", tmp_path / "engine", "--runtime", rtx.NAME, "--explain")
    assert result.exit_code == 0
    assert "for 1,000 columns" not in result.stderr
    assert "trtexec --loadEngine=trtexec.plan --useProfile=0" in result.stdout


@pytest.mark.parametrize("name", UNPROVEN_IN_PLACE)
def test_what_is_unproven_beside_an_in_place_cache_is_said_where_it_is_chosen(name: str, program: OnnxProgram) -> None:
    """On a machine without a GPU TensorRT-RTX refuses these options, so the warning is asked for by itself."""
    plan = plan_of(program)
    told = io.StringIO()
    show_unproven(Console(file=told, width=400), replace(plan, options=BuildOptions(**{name: True})))
    assert f"Warning: {flag(BuildOptions, name)} beside a cache updated in place is unproven" in told.getvalue()
    assert "Unproven with dialect tensorrt." in options_of(BuildOptions)[name][1].help
    quiet = io.StringIO()
    show_unproven(Console(file=quiet), plan)
    assert quiet.getvalue() == ""


def test_the_image_says_what_the_package_says() -> None:
    """Read by docker's own parser once; here: its files exist, its ranges are ours, its command is a list."""
    text = (ROOT / "deploy" / "tensorrt.Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = [line for line in project["dependencies"] if line.startswith("torch")]
    assert f"'{torch}'" in text
    assert f">= {LEAST_TENSORRT}" in text
    for source in re.findall(r"^COPY (\S+) ", text, re.M):
        assert (ROOT / source).exists()
    (command,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.M)
    _, script, *options = json.loads(command)
    assert (ROOT / script).is_file()
    assert options == ["--python", "/opt/venv/bin/python", "--work", "/work", "--out", "/results"]
    code = re.search(r'^RUN python -c "(.*)"$', text, re.M)
    assert code is not None
    compile(code[1], "check", "exec")
