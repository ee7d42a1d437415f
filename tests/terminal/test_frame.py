"""What stands around every verb: a file of options, how much is said, completion, and ``python -m glm_export``."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import cli
from glm_export.terminal.console import MESSAGES
from glm_export.terminal.frame.paths import complete_model

POEM, NEXT = "千山鸟飞绝，万径人踪灭。", "孤舟蓑笠翁，独钓寒江雪。"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in arguments], catch_exceptions=False)


# -- a file of options -------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "options.toml"


def test_a_file_has_options_and_what_is_typed_comes_first(config: Path) -> None:
    config.write_text(f'prompt = ["{POEM}", "春眠不觉晓，"]\nmax-new-tokens = 4\n', encoding="utf-8")
    both = run("generate", "demo", "--config", config)
    assert len(both.stdout.splitlines()) >= 2
    assert both.stdout.startswith(NEXT[:3])
    assert not both.stdout.startswith(NEXT)
    typed = run("generate", "demo", "--prompt", POEM, "--max-new-tokens", 40, "--config", config)
    assert typed.stdout == f"{NEXT}\n"


def test_a_file_gives_what_is_required_flags_and_names(config: Path, tmp_path: Path) -> None:
    config.write_text(f'out = "{tmp_path / "out"}"\ndialect = "ort"\njson = true\n', encoding="utf-8")
    result = run("export", "demo", "--config", config, "-q")
    assert result.exit_code == 0
    assert '"dialect": "ort"' in result.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('dialct = "ort"', "export has no option 'dialct'; did you mean 'dialect'?"),
        ("zzz = 1", "export has no option 'zzz'; there are out, dialect"),
        ("quiet = true", "export has no option 'quiet'"),
        ('force = "yes"', "force should be true or false, found 'yes'"),
        ("max-length = 2.5", "max-length should be a whole number, found 2.5"),
        ("max-length = true", "max-length should be a whole number, found true"),
        ('recipe = ["fp8"]', "recipe should be a text or a number, found a list of 'fp8'"),
        ("dialect = ort", "is no TOML"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_one_line(text: str, message: str, config: Path) -> None:
    config.write_text(text, encoding="utf-8")
    result = run("export", "demo", "--out", config.parent / "out", "--config", config)
    (line,) = result.stderr.strip().splitlines()
    assert (result.exit_code, line.startswith("Error: "), message in line) == (2, True, True), line
    assert not (config.parent / "out").exists()


def test_a_file_that_is_missing_and_a_value_no_option_has(config: Path) -> None:
    assert "cannot be read" in run("inspect", "demo", "--config", config).stderr
    config.write_text('dialect = "french"\n')
    result = run("export", "demo", "--out", config.parent / "out", "--config", config)
    assert (result.exit_code, "'french' is not one of" in " ".join(result.stderr.split())) == (2, True)


# -- how much is said --------------------------------------------------------------------------------------------------


def test_quiet_says_nothing_but_errors(tmp_path: Path) -> None:
    loud = run("export", "demo", "--out", tmp_path / "a")
    assert "weights: begun" in loud.stderr
    assert "graph: done in" in loud.stderr
    for words in (("-q", "export"), ("export", "-q")):
        result = run(*words, "demo", "--out", tmp_path / f"b{words[0]}")
        assert (result.exit_code, result.output) == (0, "")
    failed = run("export", "-q", "demo", "--out", tmp_path / "a")
    assert failed.stderr.startswith("Error: ")
    assert MESSAGES.quiet is False


@pytest.mark.parametrize(
    ("words", "level"),
    [(("-q",), "ERROR"), (("-v",), "INFO"), (("-vv",), "DEBUG"), (("--log-level", "error"), "ERROR")],
)
def test_levels_are_those_of_pythons_log_and_go_with_the_call(
    words: tuple[str, ...], level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glm_export.deployment import inspect

    logger, seen = logging.getLogger("glm_export"), []

    def look(*_: object) -> dict[str, str]:
        seen.append(logging.getLevelName(logger.level))
        return {}

    monkeypatch.setattr(inspect, "inspect_folder", look)
    before = logger.level
    assert run(*words, "inspect", "demo").exit_code == 0
    assert run("inspect", *words, "demo").exit_code == 0
    assert seen == [level, level]
    assert logger.level == before


def test_more_and_less_contradict_each_other() -> None:
    assert run("inspect", "-q", "-v", "demo").exit_code == 2
    assert run("-q", "inspect", "-v", "demo").exit_code == 2


# -- completion --------------------------------------------------------------------------------------------------------


def completed(words: str, place: Path, shell: str = "bash") -> list[str]:
    environment = os.environ | {
        "_GLM_EXPORT_COMPLETE": f"{shell}_complete", "COMP_WORDS": words,
        "COMP_CWORD": words.rpartition(" ")[2] if shell == "fish" else str(words.count(" ")),
        "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_CACHE": str(place / "hub"),
    }  # fmt: skip
    command = [sys.executable, "-m", "glm_export"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=place, check=False)
    assert found.stderr == ""
    return found.stdout.split()


def test_shells_complete_verbs_options_choices_and_models(demo_program: OnnxProgram, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(demo_program.folder)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "hub" / "models--THUDM--chatglm2-6b").mkdir(parents=True)
    assert completed("glm-export exp", tmp_path) == ["plain,export"]
    assert "plain,--recipe" in completed("glm-export export demo --rec", tmp_path)
    assert completed("glm-export export demo --dialect tens", tmp_path) == ["plain,tensorrt"]
    models = ["plain,demo", "plain,demo-glm", "plain,THUDM/chatglm2-6b", "plain,mine"]
    assert completed("glm-export inspect ", tmp_path) == models
    assert completed("glm-export inspect no", tmp_path) == ["dir,no"]
    assert completed("glm-export deploy tri", tmp_path) == ["plain,triton"]


def test_a_value_joined_to_its_option_is_completed_in_its_place(tmp_path: Path) -> None:
    """bash cuts the line at the sign and replaces what is behind it; zsh and fish replace the whole word."""
    assert completed("glm-export export demo --dialect = tens", tmp_path) == ["plain,tensorrt"]
    line = "glm-export export demo --dialect=tens"
    assert completed(line, tmp_path, "zsh") == ["plain", "--dialect=tensorrt", "_"]
    assert completed(line, tmp_path, "fish") == ["plain,--dialect=tensorrt"]


def test_fish_takes_a_description_whole(tmp_path: Path) -> None:
    environment = os.environ | {"_GLM_EXPORT_COMPLETE": "fish_source", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "glm_export"]
    script = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert 'string split -m 1 ","' in script


def test_what_completes_nothing_leaves_folders_to_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complete_model("elsewhere/") == ([], True)
    assert complete_model("demo-") == (["demo-glm"], False)


def test_the_package_runs() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "glm_export", "--version"], capture_output=True, text=True, check=False
    )
    assert found.stdout.startswith("glm-export, version ")
