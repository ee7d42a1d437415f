"""The group of verbs: each is imported when it is called and not before, and says of options what their fields say."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from typing import Any

import click
import pytest
from click.testing import CliRunner

from glm_export.calibration.options import CalibrationOptions
from glm_export.cli import HOME, VERBS, Verb, cli
from glm_export.deployment.request import BuildRequest, ImplicitInt8
from glm_export.engines.options import BuildOptions
from glm_export.evaluation.options import QualityOptions
from glm_export.exporter.options import ExportOptions
from glm_export.generation.sampling import Sampling
from glm_export.performance.report import BenchOptions
from glm_export.proof.options import CheckOptions
from glm_export.spec.option import flag, options_of
from glm_export.terminal.deploy.targets import TARGETS, Target

LOADED_BY_HELP = """
import contextlib, io, sys
from glm_export.cli import VERBS, cli
for verb in ["", *VERBS]:
    # What stands around every verb is the same for all of them.
    verbs = lambda: [n for n in sys.modules if n.startswith("glm_export.terminal.") and ".frame" not in n]
    for name in verbs():
        del sys.modules[name]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        cli([verb, "--help"] if verb else ["--help"])
    assert "Usage:" in said.getvalue(), verb
    print(verb, *sorted(name.rpartition(".")[2] for name in verbs()))
heavy = {"torch", "onnx", "onnxruntime", "polygraphy", "transformers"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def verb(name: str) -> click.Command:
    return Verb(name=name, help="").load()


def test_help_imports_the_verb_it_explains_alone() -> None:
    result = python("-c", LOADED_BY_HELP)
    assert result.returncode == 0, result.stderr
    loaded = {line.split(" ")[0]: line.split(" ")[1:] for line in result.stdout.splitlines()}
    assert loaded.pop("") == []
    # A room of several verbs is loaded with the one of them; a verb with targets prints nothing itself.
    console = {name: set[str]() if name == "deploy" else {"console"} for name in VERBS}
    assert loaded == {name: sorted(console[name] | {*HOME.get(name, name).split(".")}) for name in VERBS}


@pytest.mark.parametrize("name", TARGETS)
def test_the_list_of_targets_says_what_the_target_says_of_itself(name: str) -> None:
    command = Target(name=name, help="").load()
    assert command.name == name
    assert str(command.help).split("\n\n")[0].replace("\n", " ") == TARGETS[name]
    shown = CliRunner().invoke(cli, ["deploy", name, "--help"])
    assert (shown.exit_code, "--out" in shown.output) == (0, True)
    assert CliRunner().invoke(cli, ["deploy", "nowhere"]).exit_code == 2


@pytest.mark.parametrize("name", VERBS)
def test_the_list_says_what_the_verb_says_of_itself(name: str) -> None:
    command = verb(name)
    assert command.name == name
    assert str(command.help).split("\n\n")[0].replace("\n", " ") == VERBS[name]


def test_the_list_is_whole() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    said = " ".join(result.output.replace("│", " ").split())
    for name, line in VERBS.items():
        assert f" {name} {line}" in said


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("exprot", "No such command 'exprot'. Did you mean 'export'?"), ("nonsense", "No such command 'nonsense'.")],
)
def test_an_unknown_verb_is_refused_and_the_likely_one_named(typed: str, answer: str) -> None:
    result = CliRunner().invoke(cli, [typed, "--out", "x"])
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert answer in said
    assert ("Did you mean" in said) == ("Did you mean" in answer)


def test_the_module_runs_and_says_its_version() -> None:
    result = python("-m", "glm_export.cli", "--version")
    assert (result.returncode, result.stdout) == (0, f"glm-export, version {version('glm-export')}\n")


@pytest.mark.parametrize(
    ("name", "record", "left_out"),
    [
        ("export", ExportOptions, {"excluded"}),
        ("calibrate", CalibrationOptions, set()),
        ("quality", QualityOptions, set()),
        ("check", CheckOptions, set()),
        ("bench", BenchOptions, set()),
        ("generate", Sampling, set()),
        ("chat", Sampling, set()),
        ("infill", Sampling, set()),
        ("build", BuildRequest, {"export", "options"}),
        ("build", BuildOptions, set()),
        ("build", ImplicitInt8, set()),
        (
            "build",
            ExportOptions,
            {
                "dialect",
                "logits",
                "max_length",
                "prefill_memory",
                "hidden_states",
                "excluded",
                "block_size",
                "head_bits",
                "kv_cache_dtype",
            },
        ),
    ],
)
def test_an_option_says_what_its_field_says(name: str, record: type, left_out: set[str]) -> None:
    options = {option.name: option for option in verb(name).params if isinstance(option, click.Option)}
    described = {field: known for field, known in options_of(record).items() if field not in left_out}
    assert described
    for name, (field, said) in described.items():
        option: Any = options[name]
        assert option.opts == [flag(record, name)]
        assert said.help[1:] in option.help
        if said.choices is not None:
            assert list(option.type.choices) == list(said.choices())
        if option.show_default:
            assert option.default == field.default


def test_options_become_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person leaves out is what the record has by itself."""
    from glm_export.deployment import build as deployment

    asked: list[BuildRequest] = []

    def stop(request: BuildRequest, **_: Any) -> None:
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(deployment, "build_requested", stop)
    for words in (
        (), ("--dtype", "float32", "--workspace", "0.5", "--stripped", "--compute-capability", "8.9", "--implicit-int8",
             "--calibrator", "min-max"),
    ):  # fmt: skip
        assert CliRunner().invoke(cli, ["build", "demo", "--out", "x", *words]).exit_code == 3
    plain, full = asked
    usual = BuildRequest(source="demo", out=plain.out)
    assert plain.given_to_export == {}
    assert (plain.max_batch, plain.options, plain.implicit_int8) == (4, usual.options, None)
    assert full.given_to_export == {"dtype": "float32"}
    assert full.options == BuildOptions(workspace_bytes=500_000_000, stripped=True, compute_capabilities=("8.9",))
    assert full.implicit_int8 == ImplicitInt8(algorithm="min-max")


def test_what_belongs_to_implicit_int8_is_refused_without_it() -> None:
    words = ["build", "demo", "--out", "x", "--calibrator", "entropy", "--corpus", "poems"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert "--calibrator, --corpus belongs to --implicit-int8" in " ".join(result.stderr.replace("│", " ").split())
    result = CliRunner().invoke(cli, ["build", "demo", "--out", "x", "--workspace", "nan"])
    assert result.exit_code == 2
    assert "Error: --workspace is a number of gigabytes, found nan" in result.stderr
