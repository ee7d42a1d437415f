"""Completion in the shells themselves: bash, zsh and fish, set up by the lines of ``docs/terminal.md``.

What the shell made of a line that was typed and tabbed is what ``glm-export`` is called with; lists are on the screen.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glm_export.artifacts.program import OnnxProgram

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "terminal.md").read_text(encoding="utf-8")
SECONDS = 120.0
READY = "ready> "
START = {
    "bash": (".bashrc", f"PS1='{READY}'\nbind 'set bell-style none'\n"),
    "zsh": (".zshrc", f"PS1='{READY}'\nunsetopt beep\nautoload -Uz compinit && compinit -u\n"),
    "fish": (".config/fish/config.fish", f"function fish_prompt; echo -n '{READY}'; end\nset -g fish_greeting\n"),
}
"""A start file of each shell, and what stands in it before the line of the page."""
PTY = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(['sh', '-c', sys.argv[1]])))"
GLM_EXPORT = """#!{python}
import json, os, sys
sys.path.insert(0, {root!r})
if "_GLM_EXPORT_COMPLETE" not in os.environ:
    with open({called!r}, "w") as out:
        json.dump(sys.argv[1:], out)
    sys.exit()
from glm_export.cli import main
main()
"""


def line_of_the_page(shell: str) -> tuple[str, str]:
    """What to put where, as the page's table says: the line, and the start file, from the home folder on."""
    (row,) = (row for row in DOCS.splitlines() if row.startswith(f"| {shell} "))
    line, file = re.findall(r"`([^`]+)`", row)
    return line.replace("\\|", "|"), file.removeprefix("~/")


class Typed:
    """A shell in a terminal: text is typed, and what is on the screen is read."""

    def __init__(self, shell: str, home: Path) -> None:
        program = os.environ.get(shell.upper()) or shutil.which(shell)
        if program is None:
            pytest.skip(f"no {shell} is installed, and {shell.upper()}= names none")
        beginning, (line, file) = START[shell], line_of_the_page(shell)
        for name in (beginning[0], file):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / beginning[0]).write_text(beginning[1])
        with (home / file).open("a") as opened:
            opened.write(f"{line}\n")
        self.called = home / "called.json"
        command = home / "bin" / "glm-export"
        command.parent.mkdir()
        command.write_text(GLM_EXPORT.format(python=sys.executable, root=str(ROOT), called=str(self.called)))
        command.chmod(0o755)
        environment = {
            "PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(home), "TERM": "vt100", "LANG": "C.UTF-8",
            "HF_HUB_CACHE": str(home / "hub"),
        }  # fmt: skip
        self.screen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PTY, f"stty cols 120 rows 40; exec {shlex.quote(program)} -i"],
            env=environment, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.read_until(READY)

    def type(self, text: str) -> None:
        self.screen = b""
        os.write(self.process.stdin.fileno(), text.encode())

    def read_until(self, *words: str) -> None:
        """Until all of them stand on the screen, or the shell says nothing more."""
        end = time.monotonic() + SECONDS
        output = self.process.stdout.fileno()
        while not all(word.encode() in self.screen for word in words):
            assert select.select([output], [], [], max(0.0, end - time.monotonic()))[0], self.screen.decode()
            piece = os.read(output, 1 << 16)
            assert piece, self.screen.decode()
            self.screen += piece

    def asked(self, text: str) -> list[str]:
        """A line is typed and entered; what ``glm-export`` was called with."""
        self.called.unlink(missing_ok=True)
        self.type(f"{text}\r")
        end = time.monotonic() + SECONDS
        while not (self.called.exists() and self.called.read_text().endswith("]")):
            assert time.monotonic() < end, self.screen.decode()
            if select.select([self.process.stdout.fileno()], [], [], 0.05)[0]:
                self.screen += os.read(self.process.stdout.fileno(), 1 << 16)
        self.read_until(READY)
        return json.loads(self.called.read_text())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.mark.parametrize("shell", START)
def test_a_line_is_completed_as_it_is_typed(shell: str, demo_program: OnnxProgram, tmp_path: Path) -> None:
    (tmp_path / "mine").symlink_to(demo_program.folder)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "hub" / "models--THUDM--chatglm2-6b").mkdir(parents=True)
    typed = Typed(shell, tmp_path)
    try:
        # The control: without a Tab the line is called as it was typed.
        assert typed.asked("glm-export exp") == ["exp"]
        assert typed.asked("glm-export exp\t") == ["export"]
        assert typed.asked("glm-export export demo --dialect tens\t") == ["export", "demo", "--dialect", "tensorrt"]
        assert typed.asked("glm-export export demo --dialect=tens\t") == ["export", "demo", "--dialect=tensorrt"]
        assert typed.asked("glm-export inspect demo-\t") == ["inspect", "demo-glm"]
        assert typed.asked("glm-export inspect THU\t") == ["inspect", "THUDM/chatglm2-6b"]
        # zsh takes its slash back where the line ends.
        assert typed.asked("glm-export inspect not\t") in (["inspect", "nothing/"], ["inspect", "nothing"])
        # bash shows a list at the second Tab.
        typed.type("glm-export inspect \t\t")
        typed.read_until("demo-glm", "THUDM/chatglm2-6b", "mine")
    finally:
        typed.close()
