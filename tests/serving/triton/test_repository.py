"""Models in a repository: what is written, and that Triton's schema and ONNX Runtime read the same of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx.checker import ValidationError

from glm_export import api
from glm_export.artifacts.engine import PLAN, BuiltOn, Compatibility, Engine
from glm_export.artifacts.manifest import QUICK_BYTES
from glm_export.artifacts.open import Kind
from glm_export.artifacts.own_files import remove_own
from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import cli
from glm_export.deployment.inspect import inspect_folder
from glm_export.engines.profiles import profiles_of, resolve_limits
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.serving.triton import model_config, repository
from glm_export.serving.triton.options import RepositoryOptions
from glm_export.serving.triton.repository import write_model
from glm_export.serving.triton.tensors import INPUTS, OUTPUTS

pytest.importorskip("tritonclient.grpc", reason="tritonclient, which the Makefile installs, is not there")
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

ORT_DTYPES = {
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(bool)": "TYPE_BOOL",
    "tensor(float)": "TYPE_FP32",
}
"""Of ONNX Runtime, as its backend in Triton has them."""


def parsed(text: str) -> Any:
    """A config as Triton reads it: fields of its schema alone."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def config_of(folder: Path) -> Any:
    return parsed((folder / "config.pbtxt").read_text())


def said(entries: Any) -> list[tuple[str, str, list[int]]]:
    """Inputs or outputs of a config."""
    return [(one.name, model_config_pb2.DataType.Name(one.data_type), list(one.dims)) for one in entries]


def found(nodes: Any) -> list[tuple[str, str, list[int]]]:
    """Inputs or outputs of a file, as ONNX Runtime says them."""
    return [
        (one.name, ORT_DTYPES[one.type], [dim if isinstance(dim, int) else -1 for dim in one.shape]) for one in nodes
    ]


def engine_of(program: OnnxProgram, *, runtime: str = "tensorrt", version: str = "10.14.1") -> Engine:
    """What an engine's folder would say of a program; there is no TensorRT here to build one."""
    limits = resolve_limits(program.signature, program.config.max_positions, max_batch=4)
    return Engine(
        folder=program.folder, program=program, runtime=runtime, version=version, limits=limits,
        profiles=profiles_of(program.signature, limits), built_on=BuiltOn(system="Linux"),
        compatibility=Compatibility(), manifest={},
    )  # fmt: skip


# -- the engine behind the Python backend ------------------------------------------------------------------------------


def test_the_python_backends_model(demo_program: OnnxProgram, tmp_path: Path) -> None:
    written = write_model(demo_program.folder, tmp_path / "models", RepositoryOptions(name="poems"))
    folder = tmp_path / "models" / "poems"
    assert (written.folder, written.name, written.notes) == (folder, "poems", ())
    config = config_of(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("poems", "python", 0)
    assert config.model_transaction_policy.decoupled
    assert not config.HasField("dynamic_batching")
    for tensors, entries in ((INPUTS, config.input), (OUTPUTS, config.output)):
        assert said(entries) == [(one.name, f"TYPE_{one.dtype}", [one.size]) for one in tensors]
    assert all(entry.optional for entry in config.input)
    (python,) = folder.rglob("*.py")
    assert (python.relative_to(folder), python.read_text()) == (Path("1/model.py"), repository.MODEL_PY)
    # Nothing leads out of it, and what is in it is the folder that was exported.
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    inner = folder / "1" / "model"
    api.open_exported(inner).require_undamaged()
    names = {path.name for path in demo_program.folder.iterdir()}
    assert {path.name for path in inner.iterdir()} == names
    sizes = json.loads((folder / "triton.json").read_text())["sizes"]
    every = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert every == {*sizes, "triton.json"}
    assert written.total_bytes == sum(sizes.values())


@pytest.mark.parametrize("link", [False, True])
def test_large_files_are_linked_where_that_is_wanted(link: bool, demo_program: OnnxProgram, tmp_path: Path) -> None:
    """A copy of the shared program: onnx refuses a file of several names, so other tests could not load it."""
    given = shutil.copytree(demo_program.folder, tmp_path / "given")
    written = write_model(given, tmp_path, RepositoryOptions(name="poems", link=link))
    linked = 0
    for path in (tmp_path / "poems" / "1" / "model").iterdir():
        source = given / path.name
        large = source.stat().st_size > QUICK_BYTES
        assert path.samefile(source) == (large and link)
        linked += source.stat().st_size if path.samefile(source) else 0
    assert written.linked_bytes == linked
    assert bool(linked) == link
    loaded = partial(onnx.load, str(given / "model.onnx"))
    with pytest.raises(ValidationError, match="hard links") if link else nullcontext():
        loaded()


def test_where_there_are_no_links_files_are_copied(
    demo_program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    options = RepositoryOptions(name="poems", link=True)
    assert write_model(demo_program.folder, tmp_path, options).linked_bytes == 0
    api.open_exported(tmp_path / "poems" / "1" / "model").require_undamaged()


def test_a_model_is_replaced_where_it_is_ours_and_asked_for(demo_program: OnnxProgram, tmp_path: Path) -> None:
    options = RepositoryOptions(name="poems")
    write_model(demo_program.folder, tmp_path, options)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"poems exists; give another --out, or --force"):
        write_model(demo_program.folder, tmp_path, options)
    forced = RepositoryOptions(name="poems", force=True, backend="onnxruntime")
    # What Python left there when a server ran is no stranger.
    cached = tmp_path / "poems" / "1" / "__pycache__"
    cached.mkdir()
    (cached / "model.cpython-311.pyc").touch()
    stranger = tmp_path / "poems" / "1" / "model" / "notes.txt"
    stranger.touch()
    with pytest.raises(InputError, match=r"holds 1/model/notes\.txt, which glm-export did not write"):
        write_model(demo_program.folder, tmp_path, forced)
    stranger.unlink()
    write_model(demo_program.folder, tmp_path, forced)
    assert config_of(tmp_path / "poems").backend == "onnxruntime"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "poems"]
    assert demo_program.model_path.is_file()
    assert (demo_program.folder / "model.onnx.data").stat().st_size > QUICK_BYTES


@pytest.mark.parametrize("name", ["../secret", "1/../../secret", "/{}/secret", "1/link/secret"])
def test_a_models_list_of_files_leads_nowhere_else(name: str, demo_program: OnnxProgram, tmp_path: Path) -> None:
    folder = write_model(demo_program.folder, tmp_path / "models", RepositoryOptions(name="poems")).folder
    (tmp_path / "models" / "secret").touch()
    (folder / "1" / "link").symlink_to(tmp_path / "models")
    manifest = json.loads((folder / "triton.json").read_text())
    manifest["sizes"][name.format(tmp_path / "models")] = 0
    (folder / "triton.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"holds 1/link"):
        write_model(demo_program.folder, tmp_path / "models", RepositoryOptions(name="poems", force=True))
    assert not remove_own(folder, Kind.TRITON)
    assert (tmp_path / "models" / "secret").exists()


def test_what_goes_wrong_leaves_nothing(
    demo_program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        write_model(demo_program.folder, tmp_path, RepositoryOptions(name="poems"))
    assert list(tmp_path.iterdir()) == []


# -- a step of the decoder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dialect"),
    [("chatglm2", "onnx"), ("chatglm2", "portable"), ("chatglm2", "ort"), ("glm", "onnx"), ("glm", "tensorrt")],
)
def test_a_program_is_described_as_onnx_runtime_reads_it(
    name: str, dialect: str, exported: Callable[..., OnnxProgram], tmp_path: Path
) -> None:
    program = exported(name, dialect)
    written = write_model(program.folder, tmp_path, RepositoryOptions(name="step", backend="onnxruntime"))
    config = config_of(written.folder)
    assert (config.backend, config.max_batch_size, config.HasField("dynamic_batching")) == ("onnxruntime", 0, False)
    # Loaded from where the backend looks for it, with the weights beside it.
    file = written.folder / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert said(config.input) == found(session.get_inputs())
    assert said(config.output) == found(session.get_outputs())
    # A control: a dim of another size would be seen.
    config.input[-1].dims[-1] += 1
    assert said(config.input) != found(session.get_inputs())


def test_a_step_runs_by_what_the_config_says(demo_program: OnnxProgram, tmp_path: Path) -> None:
    """A client that knows the config alone keeps the cache, and writes what the model writes."""
    write_model(demo_program.folder, tmp_path, RepositoryOptions(name="step", backend="onnxruntime"))
    config = config_of(tmp_path / "step")
    session = onnxruntime.InferenceSession(str(tmp_path / "step" / "1" / "model.onnx"))
    with api.load_session(demo_program) as whole:
        new = ids = whole.encode("千山鸟飞绝，万径人踪灭。")
        past = {
            one.name: np.zeros([1 if at == 0 else max(0, dim) for at, dim in enumerate(one.dims)], np.float32)
            for one in config.input
            if one.name.startswith("past")
        }
        for _ in range(13):
            feeds = {
                "input_ids": [new],
                "attention_mask": [[1] * len(ids)],
                "position_ids": [[*range(len(ids))][-len(new) :]],
            }
            logits, *present = session.run(None, {key: np.array(value) for key, value in feeds.items()} | past)
            past, new = dict(zip(past, present, strict=True)), [int(logits[0, -1].argmax())]
            ids = ids + new
        assert whole.tokenizer.decode(ids[-13:]) == "\n孤舟蓑笠翁，独钓寒江雪。"


def test_an_engine_is_described_with_its_profiles(exported: Callable[..., OnnxProgram]) -> None:
    program = exported("chatglm2", "portable")
    config = parsed(model_config.as_text(model_config.engine_config("step", engine_of(program))))
    assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "tensorrt", 0)
    (group,) = config.instance_group
    assert list(group.profile) == ["0", "1"]
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    session = onnxruntime.InferenceSession(str(program.model_path))
    assert said(config.input) == found(session.get_inputs())
    assert said(config.output) == found(session.get_outputs())


def test_an_engines_plan_lies_where_the_backend_looks(
    exported: Callable[..., OnnxProgram], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = exported("chatglm2", "portable")
    built = tmp_path / "built"
    shutil.copytree(program.folder, built)
    (built / PLAN).write_bytes(b"a plan")
    engine = engine_of(program)
    # Neither is there here: an engine of TensorRT, nor what it would be built by.
    monkeypatch.setattr(repository, "_load", lambda _: replace(engine, folder=built))
    written = write_model(built, tmp_path / "models", RepositoryOptions(name="step", backend="tensorrt"))
    assert (written.folder / "1" / "model.plan").read_bytes() == b"a plan"
    assert sorted(path.name for path in (written.folder / "1").iterdir()) == ["model.plan"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("input {", "inputs {", 1),
        lambda text: text.replace("TYPE_INT64", "TYPE_INT65", 1),
        lambda text: text.replace('backend: "onnxruntime"', "backend: onnxruntime"),
        lambda text: text + "}",
    ],
    ids=["no such field", "no such dtype", "no quotes", "one brace more"],
)
def test_the_schema_refuses_a_damaged_config(damage: Callable[[str], str], demo_program: OnnxProgram) -> None:
    text = model_config.as_text(model_config.program_config("step", demo_program))
    parsed(text)
    assert damage(text) != text
    with pytest.raises(text_format.ParseError):
        parsed(damage(text))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "changes", "told"),
    [
        ("portable", {"runtime": "tensorrt-rtx"}, "loads plans of TensorRT, found one of tensorrt-rtx"),
        ("portable", {"version": "8.6.1"}, "an engine of TensorRT 8.6.1 has other dtypes"),
        ("tensorrt", {}, "writes its cache in place"),
    ],
)
def test_engines_the_backend_cannot_run(
    dialect: str, changes: dict[str, str], told: str, exported: Callable[..., OnnxProgram]
) -> None:
    with pytest.raises(InputError, match=told):
        model_config.engine_config("step", engine_of(exported("glm", dialect), **changes))


def test_programs_the_backend_cannot_run(demo_program: OnnxProgram) -> None:
    with pytest.raises(InputError, match="takes no bfloat16; export with --dtype float16"):
        model_config.program_config("step", replace(demo_program, dtype="bfloat16"))


def test_what_the_backend_cannot_be_told_is_said(tmp_path: Path) -> None:
    program = api.export("demo", tmp_path / "int8", recipe="int8-token")
    written = write_model(program.folder, tmp_path / "models", RepositoryOptions(backend="onnxruntime"))
    assert written.name == "int8"
    assert "cannot be told session.qdq_matmulnbits_accuracy_level=1" in written.notes[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["demo", "--out", "models"], "is of kind checkpoint; a repository is made of an exported folder or an engine"),
        (["PROGRAM", "--out", "models", "--name", "../up"], "a model's name is letters, digits"),
        (["PROGRAM", "--out", "models", "--backend", "tensorrt"], "is an ONNX program; build an engine of it"),
        (
            ["PROGRAM", "--out", "models", "--backend", "onnxruntime", "--max-batch", "8"],
            "--max-batch is the engine's, and backend onnxruntime has none",
        ),
        (["nowhere", "--out", "models"], "nowhere is no folder"),
        (["PROGRAM", "--out", "PROGRAM"], "which is only read"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], told: str, demo_program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.replace("PROGRAM", str(demo_program.folder)) for word in words]
    done = CliRunner().invoke(cli, ["deploy", "triton", *words])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert told in done.output
    assert list(tmp_path.iterdir()) == []


def test_the_verb_says_what_it_wrote(demo_program: OnnxProgram, tmp_path: Path) -> None:
    words = ["deploy", "triton", str(demo_program.folder), "--out", str(tmp_path), "--name", "p", "--max-batch", "3"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert f"wrote {tmp_path / 'p'} (10.8 MB" in done.output
    assert config_of(tmp_path / "p").parameters["max_batch"].string_value == "3"
    facts = inspect_folder(str(tmp_path / "p"))
    assert (facts["kind"], facts["backend"], facts["made_of"]) == ("Triton model", "python", "ONNX program")
    # It is no folder that other verbs run, and they say which one is.
    told = CliRunner().invoke(cli, ["generate", str(tmp_path / "p"), "--prompt", "春"])
    assert told.exit_code == 2
    assert "is a Triton model, which tritonserver runs; give the folder it was made of" in told.output


def test_without_the_schema_the_extra_is_named(
    demo_program: OnnxProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.grpc", None)
    with pytest.raises(EnvironmentMissingError, match=r"pip install 'glm-export\[triton\]'"):
        write_model(demo_program.folder, tmp_path / "models")
    assert not (tmp_path / "models").exists()
