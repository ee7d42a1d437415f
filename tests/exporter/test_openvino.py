"""The exported folder in OpenVINO, as it is: what PyTorch answers, call by call; a broken program answers otherwise.

OpenVINO runs in a process of its own: it is no dependency of anything here, and stands apart.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.inputs.call_layout import without_padding
from glm_export.proof.cases import parity_cases
from glm_export.proof.runners import as_the_program_says, canonical_signature
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Session
from glm_export.spec.signature import INPUT_IDS
from tests.helpers.golden_data import PREFIX, Golden
from tests.helpers.planted import plant

APART = Path(os.environ.get("OPENVINO", Path(sys.prefix) / "openvino"))
SCRIPT = Path(__file__).with_name("openvino_calls.py")
HERE = importlib.util.find_spec("openvino") is not None
pytestmark = pytest.mark.skipif(
    not HERE and not (APART / "openvino").is_dir(),
    reason=f"no OpenVINO here or in {APART}; make test puts it there, OPENVINO= says where it is",
)
ENVIRONMENT = os.environ | ({} if HERE else {"PYTHONPATH": str(APART)})
BOUND = 1e-5
CONTROL = 1e-2
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def references() -> Iterator[Callable[[str], Session]]:
    """PyTorch, what every program is held to."""
    with ExitStack() as stack:
        yield cache(lambda name: stack.enter_context(api.load_session(source_of(name))))


def source_of(name: str) -> str | Path:
    return "demo" if name == "demo" else Golden(name).folder


def told(model: Path, calls: list[Arrays], work: Path) -> list[str]:
    """The command that has OpenVINO answer these calls."""
    given = work / "calls.npz"
    np.savez(given, **{f"{n:02}/{name}": array for n, call in enumerate(calls) for name, array in call.items()})
    return [sys.executable, str(SCRIPT), str(model), str(given), str(work / "answers.npz")]


def answered(model: Path, calls: list[Arrays], work: Path) -> list[Arrays]:
    """OpenVINO's outputs of each call."""
    command = told(model, calls, work)
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[Arrays] = [{} for _ in calls]
    with np.load(command[-1]) as stored:
        for key in stored:
            number, _, name = key.partition("/")
            found[int(number)][name] = stored[key]
    return found


def apart(
    program: OnnxProgram, reference: Session, work: Path, run: OnnxProgram | None = None, *, rows: int = 3
) -> float:
    """The largest difference of any output of any case of ``check``, as a share of the output's largest value.

    ``run``: asked in place of the program. ``rows``: of a call, at most.
    """
    work.mkdir()
    with OrtSession(program, ["CPUExecutionProvider"]) as session:
        layout = session.layout
        signature = canonical_signature(session.program)
        cases = parity_cases(reference, program.config, signature, program.signature.cache, rows=rows)
        asked = [case.tensors for case in cases if len(case.tensors[INPUT_IDS]) <= rows]
    answers = answered((run or program).model_path, [layout.to_program(case) for case in asked], work)
    worst = 0.0
    for case, answer in zip(asked, answers, strict=True):
        found = without_padding(layout.to_canonical(answer, case), case)
        expected = without_padding(as_the_program_says(reference.run(case), case, program), case)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            worst = max(worst, float(np.abs(found[name] - values).max() / np.abs(values).max()))
    return worst


@pytest.mark.parametrize("name", ["demo", "glm4_hf", *PREFIX])
def test_programs_of_standard_operators(
    name: str,
    exported: Callable[[str], OnnxProgram],
    demo_program: OnnxProgram,
    references: Callable[[str], Session],
    tmp_path: Path,
) -> None:
    program = demo_program if name == "demo" else exported(name)
    assert apart(program, references(name), tmp_path / "sound") <= BOUND
    if name == "demo":
        # The control: OpenVINO runs the broken program, and it is not what PyTorch says.
        broken = plant(demo_program, "half-split rotary", tmp_path / "broken")
        assert apart(program, references(name), tmp_path / "asked", broken) > CONTROL


@pytest.mark.parametrize("name", ["demo", "glm4_hf"])
def test_programs_of_onnx_runtimes_operators(name: str, references: Callable[[str], Session], tmp_path: Path) -> None:
    """One row at a time: of a batch its GroupQueryAttention answers one row, or none."""
    program = api.export(source_of(name), tmp_path / "out", dialect="ort", logits="all")
    assert apart(program, references(name), tmp_path / "sound", rows=1) <= BOUND
    with OrtSession(program, ["CPUExecutionProvider"]) as session:
        case = parity_cases(references(name), program.config, canonical_signature(session.program))[3].tensors
        (answer,) = answered(program.model_path, [session.layout.to_program(case)], tmp_path)
    assert len(answer["present.0.key"]) < 2 < len(case[INPUT_IDS])


def test_routed_experts_are_refused(exported: Callable[[str], OnnxProgram], tmp_path: Path) -> None:
    """What docs/loaders.md says of GLM-4.5: a later OpenVINO that takes it will show here."""
    given = np.zeros((1, 4), np.int64)
    command = told(exported("glm4_moe").model_path, [{"input_ids": given}], tmp_path)
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "argument shapes ranks are not equal" in done.stderr
