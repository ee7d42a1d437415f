"""Every command and every piece of Python on the documentation's pages, done on the embedded model."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner

from glm_export.cli import VERBS, cli
from glm_export.machine.gpu import has_driver
from tests.house.snippets import (
    A_COMMAND,
    LANGUAGES,
    NOT_RUN,
    NOT_RUN_PYTHON,
    ROOT,
    Block,
    blocks,
    why_not,
)

STANDS_FOR = {"THUDM/chatglm2-6b": "demo", "THUDM-chatglm2-6b": "demo", "FOLDER": "demo", "8192": "64"}
"""What is large, or not here, and what is taken in its place."""
SMALLER = {
    "calibrate": ["--max-samples", "4"],
    "quality": ["--max-samples", "2"],
    "bench": ["--rounds", "1", "--new-tokens", "2", "--prompt-tokens", "8", "--context", "8"],
}
"""The same with less: of options given twice the last counts."""
ASKED_ONCE = ("bench", "check", "doctor", "inspect", "quality", "recipes")
"""Verbs that leave nothing behind but what they say: the same of the same is not asked a second time."""
NO_FOLDERS = ("--recipe", "--dialect")
"""Options whose value may be called like a folder."""
BEFORE = {
    "docs/certificates.md": ["export demo --out poems-onnx"],
    "docs/engines.md": [
        "export demo --out chatglm2-trt --dialect tensorrt --dtype float16 --max-length 64",
        "calibrate demo --corpus poems --out chatglm2-ranges",
    ],
    "docs/dialect-tensorrt.md": [],
    "docs/quantization.md": [
        "export demo --out demo-int4 --recipe int4-weights",
        "calibrate demo --corpus poems --out demo-ranges",
        "export demo --out chatglm2-int8 --dialect ort --recipe int8-token",
    ],
    "docs/reports.md": [
        "export demo --out chatglm2-onnx",
        "calibrate demo --corpus poems --out ranges",
        "export demo --out chatglm2-w8a8 --recipe int8-smoothquant --ranges ranges",
    ],
    "docs/speculation.md": [],
}
"""What a page takes to be there already."""
POEMS = (ROOT / "glm_export" / "embedded" / "tang_poems.jsonl").read_text(encoding="utf-8")
FEW = "".join(POEMS.splitlines(keepends=True)[:4])
TEXTS = {
    "question.txt": "千山鸟飞绝，万径人踪灭。",
    "support-chats.jsonl": POEMS,
    "held-out.jsonl": POEMS,
    "few.jsonl": FEW,
}
"""Files of the reader's own."""
ENDS_WITH = {"quality": (0, 1)}
"""Exit codes; a budget may be exceeded by so few samples."""


def pages_with(language: str) -> list[str]:
    return list(dict.fromkeys(block.page for block in blocks(language)))


class Scene:
    """A folder in which a page's commands are done, and what was made in it."""

    made: ClassVar[dict[tuple[str, ...], Path]] = {}
    answers: ClassVar[dict[tuple[str, ...], tuple[str, str]]] = {}
    """Of all pages: what is alike is made once, and asked once. Answers stand beside their page's name of the thing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in TEXTS.items():
            (folder / name).write_text(text, encoding="utf-8")
        self.told: dict[str, str] = {}
        self.ran = 0

    def run(self, command: str) -> None:
        """One line, as a shell would take it."""
        for name, stand_in in STANDS_FOR.items():
            command = re.sub(rf"(?<![\w/.-]){re.escape(name)}(?![\w/-])", stand_in, command)
        words = shlex.split(command)
        if words[0] != "glm-export":
            subprocess.run(command, shell=True, check=True, cwd=self.folder, capture_output=True)
            self.ran += 1
            return
        words = words[1:]
        target = None
        if ">" in words:
            words, target = words[: words.index(">")], words[words.index(">") + 1]
        words = [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        less = ["--corpus", "few.jsonl"] if "--budget" in words and words[0] == "export" else SMALLER.get(words[0], [])
        self._invoke([*words, *less], target)

    def _invoke(self, words: list[str], target: str | None) -> None:
        at = words.index("--out") if "--out" in words else len(words)
        out = words[at + 1] if at < len(words) else None
        # What a folder stands for, not what a page calls it: the same work is done once.
        pairs = pairwise(["", *words[:at], *words[at + 2 :]])
        key = tuple(word if before in NO_FOLDERS else self.told.get(word, word) for before, word in pairs)
        if out is not None and words[0] in ("export", "calibrate"):
            self.told[out] = " ".join(key)
            there = self.made.get(key)
            if there is not None and not (self.folder / out).exists():
                shutil.copytree(there, self.folder / out)
                self.ran += 1
                return
        if words[0] in ASKED_ONCE and "--report" not in words and key in self.answers:
            called, said = self.answers[key]
            self._answered(target, said.replace(json.dumps(called), json.dumps(words[1] if len(words) > 1 else "")))
            return
        result = CliRunner().invoke(cli, words, input="", catch_exceptions=False)
        engine = words[0] != "build" and any(word.endswith("-engine") for word in words)
        wanted = (3,) if engine and not has_driver() else ENDS_WITH.get(words[0], (0,))
        assert result.exit_code in wanted, (words, result.output)
        if out is not None and words[0] in ("export", "calibrate"):
            self.made[key] = self.folder / out
        elif words[0] in ASKED_ONCE:
            self.answers[key] = (words[1] if len(words) > 1 else "", result.stdout)
        self._answered(target, result.stdout)

    def _answered(self, target: str | None, said: str) -> None:
        if target is not None:
            (self.folder / target).write_text(said, encoding="utf-8")
        self.ran += 1


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order; where something lies there already, ``--force`` is what a reader would add."""
    monkeypatch.chdir(tmp_path)
    asked = [command for block in blocks("console") if block.page == page for command in block.commands]
    assert asked, f"{page}: a console without a command"
    todo = [command for command in asked if why_not(page, command) is None]
    if not todo:
        return
    scene = Scene(tmp_path)
    for command in [f"glm-export {line}" for line in BEFORE.get(page, [])] + todo:
        if "build" in command and find_spec("tensorrt_rtx_bindings") is None:
            continue  # it has wheels for Linux on x86-64 only
        if "deploy triton" in command and find_spec("tritonclient") is None:
            continue  # the Makefile installs it apart
        out = re.search(r"--out (\S+)", command)
        again = out is not None and (tmp_path / out[1]).exists() and " deploy " not in command
        scene.run(f"{command} --force" if again else command)
    assert scene.ran


@pytest.mark.parametrize("page", [page for page in pages_with("python") if page not in NOT_RUN_PYTHON])
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's pieces one after another, as one program."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    if page in BEFORE:
        scene = Scene(tmp_path)
        for line in BEFORE[page]:
            scene.run(f"glm-export {line}")
        stands = {"THUDM/chatglm2-6b": "demo"}
    else:
        stands = {}
    for block in blocks("python"):
        if block.page == page:
            text = block.body
            for name, stand_in in stands.items():
                text = text.replace(name, stand_in)
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(text, f"{page}:{block.line}", "exec"), names)


def test_python_that_is_not_run_is_python() -> None:
    for block in blocks("python"):
        if block.page in NOT_RUN_PYTHON:
            text = "\n".join(line for line in block.body.splitlines())
            compile(text, f"{block.page}:{block.line}", "exec")


def test_a_command_stands_where_it_is_seen() -> None:
    """In a console, behind a dollar, and of a verb there is."""
    for block in blocks():
        place = f"{block.page}:{block.line}"
        assert block.language in LANGUAGES, f"{place}: {block.language}"
        if block.language in ("", "text"):
            assert [line for line in block.body.splitlines() if A_COMMAND.match(line)] == [], f"{place}: a console?"
        for command in block.commands if block.language == "console" else []:
            if command.startswith("glm-export "):
                assert command.split()[1] in VERBS, f"{place}: {command}"


def test_a_command_that_is_not_run_is_parsed(tmp_path: Path) -> None:
    """Its options are there: what is wrong is told before the verb begins."""
    for block in blocks("console"):
        for command in block.commands:
            if not command.startswith("glm-export ") or why_not(block.page, command) is None:
                continue
            words = shlex.split(command)[1:]
            words = words[: words.index(">")] if ">" in words else words
            assert _parses(words), f"{block.page}:{block.line}: {command}"
    assert not _parses(["serve", "demo", "--no-such-option"])


def _parses(words: list[str]) -> bool:
    from importlib import import_module

    import click

    from glm_export.cli import HOME

    verb = words[0]
    command = getattr(import_module(f"glm_export.terminal.{HOME.get(verb, verb)}"), verb)
    try:
        command.make_context(verb, list(words[1:]))
    except click.UsageError as error:
        # Files that a page takes to be there are not.
        return "does not exist" in error.format_message()
    return True


def test_reasons_are_still_needed() -> None:
    """Each stands for something on a page, and names tests that are there."""
    commands: dict[str, list[str]] = defaultdict(list)
    for block in blocks("console"):
        commands[block.page] += block.commands
    for page, beginning, reason in NOT_RUN:
        told = commands[page] if page else [command for found in commands.values() for command in found]
        assert any(command.startswith(beginning) for command in told), (page, beginning)
        for named in re.findall(r"tests/[\w/.]+\w", reason):
            assert (ROOT / named).exists(), named
    for page, reason in NOT_RUN_PYTHON.items():
        assert page in pages_with("python")
        for named in re.findall(r"tests/[\w/.]+\w", reason):
            assert (ROOT / named).exists(), named


def test_a_wrong_command_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="no-such-option"):
        Scene(tmp_path).run("glm-export inspect FOLDER --no-such-option")
    block = Block("docs/x.md", 1, "console", "$ glm-export export demo \\\n    --out x    # remark\nwrote x\n$ ls\n")
    assert block.commands == ["glm-export export demo      --out x", "ls"]
