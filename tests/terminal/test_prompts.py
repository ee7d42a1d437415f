"""What people type and pipe: files, standard input, several lines, bytes that are no text; no session is lost by it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glm_export.cli import cli

POEM, NEXT = "千山鸟飞绝，万径人踪灭。", "孤舟蓑笠翁，独钓寒江雪。"
OTHER, FOLLOWING = "床前明月光，疑是地上霜。", "举头望明月，低头思故乡。"


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    return tmp_path / "prompt.txt"


def run(*arguments: object, stdin: bytes | str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin, catch_exceptions=False)


def fails(*arguments: object, stdin: bytes | str | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    line: str = result.stderr.strip().splitlines()[-1]
    return line


# -- generate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_file_and_standard_input_are_prompts(end: str, prompt: Path) -> None:
    prompt.write_bytes(f"\ufeff{POEM}{end}".encode())
    assert run("generate", "demo", "--prompt-file", prompt).stdout == f"{NEXT}\n"
    assert run("generate", "demo", "--prompt-file", prompt, "--stream").stdout == f"{NEXT}\n"
    assert run("generate", "demo", "--prompt-file", "-", stdin=f"{POEM}{end}").stdout == f"{NEXT}\n"
    several = ("--prompt-file", prompt, "--prompt", OTHER, "--prompt-file", "-")
    assert run("generate", "demo", *several, stdin=POEM).stdout == f"{FOLLOWING}\n{NEXT}\n{NEXT}\n"


def test_lines_within_a_file_stay(prompt: Path) -> None:
    text = "国破山河在，城春草木深。\n感时花溅泪，"
    prompt.write_text(f"{text}\n", encoding="utf-8")
    with_file = run("generate", "demo", "--prompt-file", prompt).stdout
    assert with_file == run("generate", "demo", "--prompt", text).stdout != f"{NEXT}\n"


def test_a_prompt_may_be_longer_than_a_command_line_takes(prompt: Path) -> None:
    prompt.write_text(POEM * 12_000, encoding="utf-8")
    assert prompt.stat().st_size > 128 << 10
    line = fails("generate", "demo", "--prompt-file", prompt)
    assert "the prompt has 144003 tokens, the model's context 512: 143491 too many; shorten it" in line


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "is no file; give a text file, or - for standard input"),
        (b"", "is empty; a prompt needs some text"),
        (b"\n", "is empty"),
        (b"one\ntwo \xff\n", "should be UTF-8, found byte 0xFF in line 2 (invalid start byte)"),
        (b"\xed\xa0\x80", "should be UTF-8, found byte 0xED (invalid continuation byte)"),
    ],
)
def test_files_that_are_no_prompt(data: bytes | None, message: str, prompt: Path) -> None:
    if data is not None:
        prompt.write_bytes(data)
    line = fails("generate", "demo", "--prompt-file", prompt)
    assert line.startswith("Error: ")
    assert message in line
    if data is not None:
        assert message in fails("generate", "demo", "--prompt-file", "-", stdin=data)


def test_there_has_to_be_a_prompt_and_standard_input_is_one() -> None:
    assert "--prompt-file" in run("generate", "demo").stderr
    assert run("generate", "demo").exit_code == 2
    assert "read once" in run("generate", "demo", "--prompt-file", "-", "--prompt-file", "-").stderr
    assert (
        "--stream shows one text" in run("generate", "demo", "--prompt", "a", "--prompt-file", "-", "--stream").stderr
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stop", ""), "a stop string needs at least one character"),
        (("--prompt", "half \udcff"), "lone surrogate (U+DCFF) at character 5"),
        (("--temperature", "inf"), "temperature must be a number"),
        (("--temperature", "nan"), "temperature must be a number"),
        (("--top-p", "-0.1"), "top_p must be from 0"),
        (("--repetition-penalty", "inf"), "repetition_penalty must be a number above 0"),
        (("--seed", "-1"), "seed must be a whole number, 0 or more"),
        (("--top-k", "-1"), "top_k must be a whole number"),
        (("--max-new-tokens", "-5"), "max_new_tokens must be a whole number and at least 1, found -5"),
    ],
)
def test_what_cannot_be_done_is_one_line(options: tuple[str, ...], message: str) -> None:
    line = fails("generate", "demo", "--prompt", POEM, *options)
    assert line.startswith("Error: ")
    assert message in line


@pytest.mark.parametrize("options", [("--temperature", "1e-39"), ("--temperature", "1", "--top-p", "0")])
def test_extremes_that_mean_greedy_are_greedy(options: tuple[str, ...]) -> None:
    assert run("generate", "demo", "--prompt", POEM, *options).stdout == f"{NEXT}\n"


# -- chat --------------------------------------------------------------------------------------------------------------


def test_several_lines_stand_between_fences() -> None:
    lines = f'"""{POEM[:6]}\n{POEM[6:]}"""\n'
    expected = run("generate", "demo", "--prompt", f"[Round 1]\n\n问：{POEM[:6]}\n{POEM[6:]}\n\n答：").stdout
    for typed in (lines, f'"""\n{POEM[:6]}\r\n{POEM[6:]}\n"""\n', f'"""\n\n{POEM[:6]}\n{POEM[6:]}'):
        result = run("chat", "demo", stdin=typed)
        assert (result.exit_code, result.stdout) == (0, expected)
    assert run("chat", "demo", stdin=f'"""{POEM}"""\n').stdout == f"{NEXT}\n"
    # An empty one asks nothing and leaves nothing; an empty line does leave.
    assert run("chat", "demo", stdin=f'""""""\n"""\n\n"""\n{POEM}\n\n{OTHER}\n').stdout == f"{NEXT}\n"


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"half \xed\xa0\x80", b'"""\none \xff\ntwo\n"""'])
def test_bytes_that_are_no_text_are_one_line_and_the_session_goes_on(bad: bytes) -> None:
    result = run("chat", "demo", stdin=bad + b"\n" + POEM.encode() + b"\n")
    assert result.stdout == f"{NEXT}\n"
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert "should be UTF-8, found byte 0x" in line
    assert result.exit_code == 2  # nobody saw it: a script is told


def test_a_question_beyond_the_context_is_one_line_and_the_session_goes_on() -> None:
    result = run("chat", "demo", stdin=f"{POEM * 60}\n{POEM}\n")
    assert result.stdout == f"{NEXT}\n"
    (line,) = result.stderr.strip().splitlines()
    assert "tokens, the model's context 512: " in line
    assert "too many" in line


def test_a_conversation_that_outgrows_the_context_says_so_once() -> None:
    result = run("chat", "demo", "--max-new-tokens", 4, stdin=f"{POEM * 3}\n" * 15)
    assert result.exit_code == 0
    assert len(result.stdout.strip().splitlines()) >= 15
    assert result.stderr.strip() == "the conversation outgrows the model's context: its oldest rounds leave"
    short = run("chat", "demo", "--max-new-tokens", 4, stdin=f"{POEM * 3}\n" * 3)
    assert short.stderr == ""


def test_a_system_message_that_is_no_text_is_said_before_anything_is_asked() -> None:
    assert "lone surrogate" in fails("chat", "demo", "--system", "\udcff", stdin=f"{POEM}\n")


def test_a_terminal_without_unicode_gets_numbers() -> None:
    command = [sys.executable, "-m", "glm_export.cli", "generate", "demo", "--prompt", POEM, "--stream"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False)
    assert result.stdout.strip().encode().decode("unicode_escape") == NEXT
