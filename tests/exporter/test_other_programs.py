"""transformers.js, ONNX Runtime in Node.js, and Foundry Local: programs of other languages and environments.

``make loaders`` installs them, apart from everything else. They run offline.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from glm_export import api
from glm_export.artifacts.open import Kind, kind_of
from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import cli
from glm_export.deployment.inspect import inspect_folder
from glm_export.deployment.layouts.foundry_local import NAMED, write_foundry_local
from glm_export.deployment.layouts.options import LayoutOptions
from glm_export.deployment.layouts.transformers_js import write_transformers_js
from glm_export.errors import InputError
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.spec.session_entries import session_entries
from tests.exporter.test_genai import generate
from tests.exporter.test_loader_cells import CELLS, program_of  # noqa: F401 - a fixture
from tests.helpers.golden_data import Golden

HERE = Path(__file__).parent
NODE = Path(os.environ.get("NODE_MODULES", Path(sys.prefix) / "node" / "node_modules"))
FOUNDRY = Path(os.environ.get("FOUNDRY", Path(sys.prefix) / "foundry" / "bin" / "python"))
TEXTS = ["千山鸟飞绝，万径人踪灭。", "床前明月光，"]
OF_THE_CALL = {"int4-int8-prompt", "int8-dynamic"}
with_node = pytest.mark.skipif(
    not (NODE / "@huggingface").is_dir() or shutil.which("node") is None,
    reason=f"no transformers.js in {NODE}; make loaders puts it there, NODE_MODULES= says where it is",
)
with_foundry = pytest.mark.skipif(
    not FOUNDRY.is_file(),
    reason=f"no Foundry Local in {FOUNDRY}; make loaders puts it there, FOUNDRY= says which Python has it",
)


def asked_node(work: Path, calls: dict[str, object]) -> dict[str, dict[str, object]]:
    """What Node.js answers; a script finds its modules beside it."""
    (work / "node_modules").symlink_to(NODE)
    script = shutil.copy(HERE / "other_programs.mjs", work)
    (work / "calls.json").write_text(json.dumps(calls))
    command = ["node", str(script), str(work / "calls.json"), str(work / "answers.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, dict[str, object]] = json.loads((work / "answers.json").read_text())
    return answers


@with_node
def test_transformers_js_writes_what_our_session_writes(
    program_of: Callable[..., OnnxProgram],  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    """Every dialect and recipe; half precision; GLM-4.5; and the graph alone in ONNX Runtime for Node.js."""
    programs = {f"{dialect}-{recipe}": program_of(dialect, recipe) for dialect, recipe in CELLS}
    programs["half"] = api.export("demo", tmp_path / "half", dtype="float16")
    expected, entries, plain = {}, {}, {}
    for name, program in programs.items():
        write_transformers_js(program.folder, tmp_path / "models" / name)
        entries[name] = {key.removeprefix("session."): value for key, value in session_entries(program.recipe).items()}
        with api.load_session(program) as session:
            chat = api.chat(session, [{"role": "user", "content": TEXTS[0]}], max_new_tokens=24)
            expected[name] = [*(api.generate(session, text, max_new_tokens=24) for text in TEXTS), chat]
            if program.recipe is None and program.dtype == "float32":
                prompt = session.encode(TEXTS[1])
                logits = session.prefill(session.feeds([session.prompt(prompt)]))[0, -1]
                plain[str(program.model_path)] = (prompt, int(logits.argmax()))
    experts, ids = Golden("glm4_moe"), [5, 6, 7, 8]
    program = api.export(experts.folder, tmp_path / "experts")
    # Its golden folder has no tokenizer, which is not asked here.
    laid = api.export(Golden("glm4_remote").folder, tmp_path / "texts").folder
    with pytest.raises(InputError, match=r"reads texts by tokenizer\.json"):
        write_transformers_js(program.folder, tmp_path / "models" / "experts")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(laid / name, program.folder)
    write_transformers_js(program.folder, tmp_path / "models" / "experts")
    with api.load_session(program) as session:
        (row,) = generate_ids(session, [ids], stopping=Stopping(max_new_tokens=8))
    told = asked_node(tmp_path, {
        "models": {"path": str(tmp_path / "models"), "names": [*programs, "experts"]}, "texts": TEXTS,
        "entries": entries, "ids": {"experts": ids}, "plain": {path: prompt for path, (prompt, _) in plain.items()},
    })  # fmt: skip
    assert told["texts"] == expected
    found = told["ids"]["experts"][len(ids) :]
    assert found == row.ids[: len(found)] != []
    assert told["plain"] == {path: token for path, (_, token) in plain.items()}


@with_node
def test_control_a_broken_layout_is_noticed(demo_program: OnnxProgram, tmp_path: Path) -> None:
    """Without the prefix of a text, and without what has to be told, it is another text, or an error."""
    folder = write_transformers_js(demo_program.folder, tmp_path / "models" / "poems").folder
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings.pop("add_bos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copytree(folder, tmp_path / "models" / "lost")
    (tmp_path / "models" / "lost" / "onnx" / "model.onnx_data").unlink()
    names = {"path": str(tmp_path / "models"), "names": ["poems", "lost"]}
    told = asked_node(tmp_path, {"models": names, "texts": TEXTS, "entries": {}, "ids": {}, "plain": {}})["texts"]
    with api.load_session(demo_program) as session:
        assert told["poems"][1] != api.generate(session, TEXTS[1], max_new_tokens=24)
    assert "model.onnx_data" in told["lost"]


def in_foundry_local(folder: Path, work: Path) -> list[str]:
    """Its replies, turn by turn."""
    command = [FOUNDRY, "-I", HERE / "foundry_turns.py", folder, work, *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def ours(program: OnnxProgram) -> list[str]:
    messages: list[dict[str, str]] = []
    with api.load_session(program) as session:
        for question in TEXTS:
            messages.append({"role": "user", "content": question})
            reply = api.chat(session, messages, max_new_tokens=24)
            messages.append({"role": "assistant", "content": reply})
    return [one["content"] for one in messages[1::2]]


@with_foundry
@pytest.mark.parametrize("dialect", ["onnx", "ort", "portable"])
@pytest.mark.parametrize("laid_out", [False, True])
def test_conversations_in_foundry_local_are_ours(dialect: str, laid_out: bool, tmp_path: Path) -> None:
    """The exported folder as it is, and laid out; its session goes on from turn to turn."""
    program = api.export("demo", tmp_path / "out", dialect=dialect)
    folder = write_foundry_local(program.folder, tmp_path / "poems").folder if laid_out else program.folder
    replies = ours(program)
    assert in_foundry_local(folder, tmp_path) == replies
    # The control: a first turn answered alone is not the second.
    assert replies[1] != replies[0]


@with_foundry
@pytest.mark.parametrize(("dialect", "recipe"), [cell for cell in CELLS if cell[1] is not None])
def test_recipes_in_foundry_local(
    dialect: str,
    recipe: str,
    program_of: Callable[..., OnnxProgram],  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    program = program_of(dialect, recipe)
    found, expected = in_foundry_local(program.folder, tmp_path), ours(program)
    if recipe in OF_THE_CALL:
        # Inputs have one scale a call, and in the second turn its calls are others than ours.
        assert found[0] == expected[0]
    else:
        assert found == expected


# -- layouts, without the programs -------------------------------------------------------------------------------------


def test_genai_reads_a_folder_laid_out_for_foundry_local(demo_program: OnnxProgram, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "poems"
    command = ["deploy", "foundry-local", str(demo_program.folder), "--out", str(folder), "--name", "tang"]
    told = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert (told.exit_code, "for Foundry Local" in told.output) == (0, True)
    assert json.loads((folder / NAMED).read_text()) == {"Name": "tang", "PromptTemplate": None}
    with api.load_session(demo_program) as session:
        prompt = session.encode(TEXTS[1])
        (row,) = generate_ids(session, [prompt], stopping=api.stopping_for(session, 12))
    assert generate(folder, [prompt], 12) == row.ids
    assert kind_of(folder) is Kind.LAYOUT
    assert inspect_folder(str(folder))["program"] == "Foundry Local"
    with pytest.raises(InputError, match="was laid out for another program"):
        api.open_checkpoint(folder)


def test_a_layout_is_whole_ours_and_replaced_when_asked(demo_program: OnnxProgram, tmp_path: Path) -> None:
    given = shutil.copytree(demo_program.folder, tmp_path / "given")
    out = tmp_path / "models" / "poems"
    written = write_transformers_js(given, out, LayoutOptions(link=True))
    names = {path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()}
    assert names.pop("layout.json")
    assert names == json.loads((out / "layout.json").read_text())["sizes"]
    assert written.total_bytes == sum(names.values())
    assert (out / "onnx" / "model.onnx_data").samefile(given / "model.onnx.data")
    assert written.linked_bytes == names["onnx/model.onnx_data"]
    with pytest.raises(InputError, match="exists; give another --out, or --force"):
        write_transformers_js(given, out)
    (out / "onnx" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds onnx/notes\.txt, which glm-export did not write"):
        write_foundry_local(given, out, LayoutOptions(force=True))
    (out / "onnx" / "notes.txt").unlink()
    assert write_foundry_local(given, out, LayoutOptions(force=True)).linked_bytes == 0
    assert not (out / "onnx").exists()


@pytest.mark.parametrize(
    ("source", "options", "why"),
    [
        ("glm", {}, "its masks are causal"), ("demo", {"dialect": "tensorrt", "max_length": 32}, "it feeds no static"),
        ("demo", {"dtype": "bfloat16"}, "no bfloat16 kernels"),
    ],
)  # fmt: skip
def test_what_they_cannot_run_is_not_laid_out(source: str, options: dict, why: str, tmp_path: Path) -> None:
    program = api.export(source if source == "demo" else Golden(source).folder, tmp_path / "out", **options)
    for write in (write_transformers_js, write_foundry_local):
        with pytest.raises(InputError, match=why):
            write(program.folder, tmp_path / "laid")
    assert not (tmp_path / "laid").exists()
