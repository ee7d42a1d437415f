"""Readers that leave, Ctrl-C, and errors nobody foresaw: no traceback, and the exit code that says what came."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import cli
from glm_export.deployment import inspect
from tests.helpers.golden_data import Golden
from tests.helpers.planted import plant

POEM = "千山鸟飞绝，万径人踪灭。"
OTHER = "床前明月光，疑是地上霜。"
SECONDS = 300
"""Until a child that should have written or ended counts as stuck; on an idle machine it takes two."""


def closed_pipe() -> int:
    """A pipe's end to write into that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


# -- a reader that leaves ----------------------------------------------------------------------------------------------

# One process for all of them: each would import PyTorch anew.
IN_TURN = """
import io, json, sys
from glm_export.cli import main

codes = []
for line in sys.argv[2:]:
    words, typed = json.loads(line)
    sys.argv[1:], sys.stdin = words, io.TextIOWrapper(io.BytesIO(typed.encode()))
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code or 0)
with open(CODES, "w") as file:
    json.dump(codes, file)
"""


def codes_of(
    commands: list[tuple[list[object], str]], place: Path, *, stdout: int, stderr: int = subprocess.PIPE
) -> tuple[list[int], str]:
    """Each command's exit code, and what all of them wrote to standard error."""
    script = IN_TURN.replace("CODES", repr(str(place / "codes.json")))
    lines = [json.dumps(([str(word) for word in words], typed)) for words, typed in commands]
    command = [sys.executable, "-c", script, "x", *lines]
    found = subprocess.run(command, text=True, check=False, timeout=SECONDS, stdout=stdout, stderr=stderr)
    assert found.returncode == 0, found.stderr
    return json.loads((place / "codes.json").read_text()), found.stderr or ""


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are the POSIX systems'")
def test_a_reader_that_leaves_changes_no_exit_code(
    exported: Callable[[str], OnnxProgram], demo_program: OnnxProgram, tmp_path: Path
) -> None:
    glm, demo = exported("glm").folder, demo_program.folder
    wrong = plant(exported("chatglm2"), "half-split rotary", tmp_path / "planted").folder
    long = ["--prompt", POEM, "--max-new-tokens", "400"]
    against = ["--against", Golden("chatglm2").folder]
    commands: list[tuple[list[object], str, int]] = [
        (["--help"], "", 0), (["--version"], "", 0), (["inspect", "--help"], "", 0), (["recipes"], "", 0),
        (["inspect", "demo"], "", 0), (["inspect", demo, "--json"], "", 0), (["doctor"], "", 0),
        (["generate", demo, *long], "", 0), (["generate", demo, *long, "--stream"], "", 0),
        (["chat", demo], f"{POEM}\n{OTHER}\n", 0), (["infill", glm, "--text", "hello [MASK]"], "", 0),
        (["score", glm, "--text", "a", "--pattern", "{} [MASK]", "--labels", "in,on"], "", 0),
        (["check", exported("chatglm2").folder, *against], "", 0),
        (["check", wrong, *against], "", 1), (["check", wrong, *against, "--json"], "", 1),
        (["inspect", "/nowhere"], "", 2), (["nonsense"], "", 2),
    ]  # fmt: skip
    codes, errors = codes_of([(words, typed) for words, typed, _ in commands], tmp_path, stdout=closed_pipe())
    assert codes == [code for *_, code in commands]
    for said in ("Traceback", "Exception ignored", "Broken pipe", "Errno 32"):
        assert said not in errors
    # Nor does it matter where both go the same way: `2>&1 | head`.
    few = [one for one in commands if one[0][0] in ("recipes", "inspect", "nonsense")]
    pipe = closed_pipe()
    codes, _ = codes_of([(words, typed) for words, typed, _ in few], tmp_path, stdout=pipe, stderr=pipe)
    assert codes == [code for *_, code in few]


def test_nothing_more_is_written_for_a_reader_that_left(demo_program: OnnxProgram, tmp_path: Path) -> None:
    """A stream ends with its reader, however much was asked for."""
    counted = IN_TURN.replace("from glm_export.cli import main", COUNTING)
    words = ["generate", str(demo_program.folder), "--prompt", "春", "--stream", "--max-new-tokens", "400"]
    script = counted.replace("CODES", repr(str(tmp_path / "codes.json")))
    subprocess.run(
        [sys.executable, "-c", script, "x", json.dumps((words, ""))], check=True, stdout=closed_pipe(), timeout=SECONDS
    )
    assert json.loads((tmp_path / "codes.json").read_text()) == [1, 0]


COUNTING = """
from glm_export.cli import main as run
from glm_export.sessions.session import Session

prefill, decode, steps = Session.prefill, Session.decode, [1]

def counted(session, feeds):
    steps[0] += 1
    return decode(session, feeds)

Session.decode = counted

def main():
    try:
        run()
    finally:
        codes.append(steps[0])
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
@pytest.mark.parametrize("words", [("--help",), ("inspect", "demo"), ("recipes",)])
def test_a_full_disk_is_one_line(words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "glm_export.cli", *words]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=SECONDS)
    (line,) = found.stderr.strip().splitlines()
    assert (found.returncode, line.startswith("Error: "), "No space left" in line) == (3, True, True)


# -- Ctrl-C in a conversation ------------------------------------------------------------------------------------------

# The first reply stops growing after its third token, so that Ctrl-C cannot come too late.
HELD = """
import fcntl, signal, sys, termios, threading
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
from glm_export.sessions.torch import TorchSession

prefill, decode, prompts, calls = TorchSession._prefill, TorchSession._decode, [0], [0]

def counted(session, feeds):
    prompts[0] += 1
    return prefill(session, feeds)

def held(session, feeds):
    calls[0] += 1
    if prompts[0] == 1 and calls[0] > 3:
        print("[held]", flush=True)
        threading.Event().wait()
    return decode(session, feeds)

TorchSession._prefill, TorchSession._decode = counted, held
from glm_export.cli import main
main()
"""


class Terminal:
    """A child on a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        self.shown = ""
        command = [sys.executable, "-c", HELD, *words]
        environment = os.environ | {"TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
        self.child = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environment
        )
        os.close(theirs)

    def until(self, text: str) -> str:
        """What it shows up to a text that it is going to show."""
        while text not in self.shown:
            assert select.select([self.ours], [], [], SECONDS)[0], f"{text!r} did not come: {self.shown!r}"
            self.shown += self._read()
        before, self.shown = self.shown.split(text, 1)
        return before

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def rest(self) -> str:
        """What it shows until it ends."""
        while new := self._read():
            self.shown += new
        return self.shown

    def _read(self) -> str:
        # A terminal that its last user has left cannot be read.
        with contextlib.suppress(OSError):
            return self._decoded(os.read(self.ours, 1 << 16))
        return ""

    def _decoded(self, data: bytes) -> str:
        while True:
            try:
                return data.decode().replace("\r\n", "\n")
            except UnicodeDecodeError:
                data += os.read(self.ours, 1)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal("chat", "demo")
    yield made
    made.child.kill()
    made.child.wait()
    os.close(made.ours)


@pytest.mark.skipif(sys.platform == "win32", reason="terminals are the POSIX systems'")
def test_ctrl_c_ends_a_reply_and_at_the_prompt_the_conversation(terminal: Terminal) -> None:
    terminal.until("› ")
    terminal.type(f"{POEM}\n")
    terminal.until("孤舟")
    begun = "孤舟" + terminal.until("[held]").strip()  # all that was written is shown, and nothing more is
    terminal.type("\x03")
    terminal.until("› ")
    terminal.type(f"{OTHER}\n")
    reply = terminal.until("› ")
    # What was written of the first reply is part of the conversation.
    spoken = [("user", POEM), ("assistant", begun), ("user", OTHER)]
    with api.load_session("demo") as session:
        assert api.chat(session, [{"role": role, "content": text} for role, text in spoken]) in reply
    terminal.type("\x03")
    said = reply + terminal.rest()
    assert terminal.child.wait(SECONDS) == 0
    assert "Traceback" not in said
    assert "Error" not in said


# -- what nobody foresaw -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyError("x\ny"), AssertionError(), RecursionError("deep"), TypeError("t" * 9999)])
def test_a_fault_of_ours_is_one_line_and_says_so(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(inspect, "config_facts", broken)
    found = CliRunner().invoke(cli, ["inspect", "demo"])
    (line,) = found.stderr.strip().splitlines()
    assert found.exit_code == 3
    assert line.startswith("Error: this is a fault of glm-export, not of the input: " + type(error).__name__)
    assert "(glm_export/deployment/inspect.py, line " in line
    assert "report this line, the command, glm-export --version, and what" in line
    assert len(line) < 700
    assert CliRunner().invoke(cli, ["--debug", "inspect", "demo"]).exception is error
