"""Every verb from the shell's side: output, exit codes, and one line for everything that goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from glm_export.artifacts.program import OnnxProgram
from glm_export.cli import cli
from tests.helpers.golden_data import Golden
from tests.helpers.planted import plant
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

VERBS = ("export", "check", "generate", "chat", "infill", "score", "inspect", "demo")


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin, catch_exceptions=False)


def fails(code: int, *arguments: object) -> str:
    """Run, expect the exit code and one line on stderr; return the line."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: ")
    assert "Traceback" not in result.output
    return lines[-1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_export_check_inspect_generate(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("export", "demo", "--out", out)
    assert result.exit_code == 0
    assert "2.7 M parameters" in result.stderr
    assert "free" in result.stderr
    assert result.stdout == ""
    result = run("check", out, "--against", "demo")
    assert result.exit_code == 0
    assert "PASSED" in result.stdout
    assert "padded batch" in result.stdout
    report = json.loads(run("check", out, "--against", "demo", "--json").stdout)
    assert report["passed"] is True
    assert report["greedy_tokens_equal"] == report["greedy_tokens"]
    assert len(report["outputs"]) == 6 * (1 + 2 * 4)
    result = run("generate", out, "--prompt", "千山鸟飞绝，万径人踪灭。")
    assert (result.exit_code, result.stdout) == (0, "孤舟蓑笠翁，独钓寒江雪。\n")
    result = run("generate", out, "--prompt", "千山鸟飞绝，万径人踪灭。", "--stream")
    assert (result.exit_code, result.stdout) == (0, "孤舟蓑笠翁，独钓寒江雪。\n")
    facts = json.loads(run("inspect", out, "--json").stdout)
    assert facts["kind"] == "ONNX program"
    assert facts["operators"]["RotaryEmbedding"] == 8
    assert "past_key_values.0.key" in run("inspect", out).stdout


def test_generate_from_a_checkpoint_and_several_prompts() -> None:
    result = run("generate", "demo", "--prompt", "床前明月光，疑是地上霜。", "--prompt", "千山鸟飞绝，万径人踪灭。")
    assert result.stdout == "举头望明月，低头思故乡。\n孤舟蓑笠翁，独钓寒江雪。\n"
    result = run("generate", "demo", "--prompt", "春眠", "--temperature", "2", "--seed", "3", "--max-new-tokens", "5")
    again = run("generate", "demo", "--prompt", "春眠", "--temperature", "2", "--seed", "3", "--max-new-tokens", "5")
    assert result.stdout == again.stdout


def test_infill_and_score(exported: Callable[[str], OnnxProgram]) -> None:
    folder = exported("glm").folder
    result = run("infill", folder, "--text", "hello [MASK] world", "--max-new-tokens", "5")
    assert result.exit_code == 0
    assert result.stdout.startswith("hello ")
    assert result.stdout.endswith(" world\n")
    facts = json.loads(run("infill", folder, "--text", "hello [MASK] world", "--max-new-tokens", "5", "--json").stdout)
    assert facts["text"] == result.stdout.strip()
    assert len(facts["fills"]) == 1
    choice = ("score", folder, "--text", "hello", "--pattern", "{} [MASK]", "--labels", "in, on the 12")
    assert "log-probability" in run(*choice).stdout
    scores = json.loads(run(*choice, "--json").stdout)
    assert {score["label"] for score in scores} == {"in", "on the 12"}
    assert scores[0]["mean_log_probability"] >= scores[1]["mean_log_probability"]
    whole = json.loads(run(*choice, "--sum", "--json").stdout)
    assert whole[0]["log_probability"] >= whole[1]["log_probability"]


def test_chat_reads_lines_and_keeps_the_conversation() -> None:
    result = run("chat", "demo", stdin="千山鸟飞绝，万径人踪灭。\n\n")
    assert (result.exit_code, result.stdout) == (0, "孤舟蓑笠翁，独钓寒江雪。\n")


def test_chat_with_a_model_that_has_no_chat() -> None:
    result = run("chat", Golden("glm").folder, stdin="hello\n")
    assert result.exit_code == 2
    assert "no conversations" in result.stderr


def test_inspect_a_checkpoint() -> None:
    facts = json.loads(run("inspect", Golden("chatglm2_32k").folder, "--json").stdout)
    assert facts["family"] == "chatglm2"
    assert facts["rotary"] == "4 of 8 channels, base 10000, positions / 16"
    assert facts["tokenizer"]["stop_ids"] == [2]
    native = json.loads(run("inspect", Golden("glm_hf").folder, "--json").stdout)
    assert "tokenizer.json" in native["tokenizer"]["missing"]


def test_family_option_settles_what_config_leaves_open(tmp_path: Path) -> None:
    values = tiny_values("chatglm2", rope_ratio=16, _name_or_path="local")
    folder = write_checkpoint(tmp_path / "c", values, random_tensors(tiny_values("chatglm2")))
    assert "--family" in fails(2, "inspect", folder)
    result = run("export", folder, "--out", tmp_path / "out", "--family", "chatglm3")
    assert result.exit_code == 0
    assert json.loads(run("inspect", tmp_path / "out", "--json").stdout)["rotary"] == "8 of 16 channels, base 160000"
    assert run("check", tmp_path / "out", "--against", folder).exit_code == 0


def test_a_failed_comparison_exits_with_1(exported: Callable[[str], OnnxProgram], tmp_path: Path) -> None:
    program = plant(exported("chatglm2"), "half-split rotary", tmp_path / "planted")
    result = run("check", program.folder, "--against", Golden("chatglm2").folder)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "first output beyond tolerance" in result.stdout
    result = run("check", program.folder, "--against", Golden("chatglm2").folder, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["passed"] is False


# -- bad input --------------------------------------------------------------------------------------


def test_missing_shard(chatglm2_copy: Path, tmp_path: Path) -> None:
    (chatglm2_copy / "pytorch_model-00002-of-00003.bin").unlink()
    line = fails(2, "export", chatglm2_copy, "--out", tmp_path / "out")
    assert "pytorch_model-00002-of-00003.bin" in line
    assert not (tmp_path / "out").exists()


def test_truncated_shard(chatglm2_copy: Path, tmp_path: Path) -> None:
    shard = chatglm2_copy / "pytorch_model-00002-of-00003.bin"
    shard.write_bytes(shard.read_bytes()[:30_000])
    assert "damaged" in fails(2, "export", chatglm2_copy, "--out", tmp_path / "out")


def test_wrong_shape_unknown_key_unknown_architecture(tmp_path: Path) -> None:
    values = tiny_values("chatglm2")
    folder = write_checkpoint(tmp_path / "c", values | {"ffn_hidden_size": 96}, random_tensors(values))
    assert "should be [192, 64], found [224, 64]" in fails(2, "export", folder, "--out", tmp_path / "out")
    (folder / "config.json").write_text(json.dumps(values | {"new_rope": True}))
    assert "new_rope" in fails(2, "export", folder, "--out", tmp_path / "out")
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert "mamba" in fails(2, "export", folder, "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_output_that_exists(exported: Callable[[str], OnnxProgram]) -> None:
    assert "--force" in fails(2, "export", "demo", "--out", exported("chatglm2").folder)


def test_nan_weights(tmp_path: Path) -> None:
    values = tiny_values("chatglm3")
    tensors = random_tensors(values)
    tensors["transformer.embedding.word_embeddings.weight"][0, 0] = float("nan")
    folder = write_checkpoint(tmp_path / "c", values, tensors)
    line = fails(2, "export", folder, "--out", tmp_path / "out")
    assert "word_embeddings.weight holds NaN" in line
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ("export", "/nowhere", "--out", "x"), "is no folder"),
        (2, ("check", "/nowhere", "--against", "demo"), "manifest.json"),
        (2, ("generate", "/nowhere", "--prompt", "x"), "is no folder"),
        (2, ("inspect", "/nowhere"), "is no folder"),
        (2, ("generate", "demo", "--prompt", "x", "--top-p", "2"), "top_p"),
        (2, ("generate", "demo", "--prompt", "x" * 600), "context"),
        (2, ("generate", "demo", "--prompt", "x", "--max-new-tokens", "0"), "max_new_tokens"),
        (2, ("infill", "demo", "--text", "[MASK]"), "no blanks"),
        (2, ("infill", Golden("glm").folder, "--text", "no blank"), "has no blank"),
        (2, ("infill", Golden("glm").folder, "--text", "[MASK] [gMASK]"), "2 kinds"),
        (2, ("score", Golden("glm").folder, "--text", "x", "--pattern", "{} [MASK]", "--labels", "a,"), "nothing"),
    ],
)
def test_bad_arguments(code: int, arguments: tuple[str, ...], message: str) -> None:
    assert message in fails(code, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [("export", "demo"), ("export", "demo", "--out", "x", "--dialect", "french"), ("nonsense",),
     ("generate", "demo", "--prompt", "a", "--prompt", "b", "--stream")],
)  # fmt: skip
def test_usage_errors_exit_with_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_debug_shows_the_traceback() -> None:
    from glm_export.errors import InputError

    with pytest.raises(InputError):
        run("--debug", "inspect", "/nowhere")


def test_unwritable_output(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert "is no folder" in fails(2, "export", "demo", "--out", blocker / "out")


# A shell that starts a job in the background makes it ignore SIGINT, and children inherit that: the child asks for the
# usual handler itself. It waits while its graph is due, so that the signal cannot come too early or too late.
INTERRUPTED = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from glm_export.exporter import export

def held(*_):
    print("halfway", flush=True)
    threading.Event().wait()

export.program_graph = held
from glm_export.cli import main
main()
"""


def interrupted(process: subprocess.Popen[str]) -> str:
    """What it writes once it has ended; Python can lose a signal that comes while it tidies up, so it is sent again."""
    while True:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            continue


@pytest.mark.skipif(sys.platform == "win32", reason="the signal is the POSIX systems'")
def test_ctrl_c_halfway_leaves_nothing(tmp_path: Path) -> None:
    """A real process, a real signal, while it exports; also where this one was started with SIGINT ignored."""
    folder = write_checkpoint(tmp_path / "c", tiny_values("chatglm2"))
    command = [sys.executable, "-c", INTERRUPTED, "export", str(folder), "--out", str(tmp_path / "out")]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "halfway\n"
    assert (tmp_path / ".out.partial").is_dir()
    errors = interrupted(process)
    assert process.returncode == 3
    assert errors.strip().splitlines()[-1].startswith("Error: interrupted")
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


CUT_SHORT = """
import os, sys
from glm_export.exporter import export

def cut(*arguments, write=export.write_weights, **options):
    os.truncate(sys.argv[2] + "/model.safetensors", 4096)
    return write(*arguments, **options)

export.write_weights = cut
from glm_export.cli import main
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the signal is the POSIX systems'")
def test_a_weight_file_that_is_cut_short_while_it_is_read_is_one_line(tmp_path: Path) -> None:
    """The system ends such a process by SIGBUS."""
    folder = write_checkpoint(tmp_path / "c", tiny_values("chatglm2", hidden_size=256, num_layers=4))
    assert (folder / "model.safetensors").stat().st_size > 1 << 20
    command = [sys.executable, "-c", CUT_SHORT, "export", str(folder), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: a file that was being read was cut short")
    assert "Traceback" not in result.stderr
    assert sorted({path.name for path in tmp_path.iterdir()} - {".out.lock"}) == ["c"]


def test_output_to_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m glm_export.cli inspect demo --json | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr
