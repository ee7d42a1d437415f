"""Every example runs as it stands, on the embedded models, and shows what it is there to show."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAINING = {"train_poems", "train_infilling"}
"""Minutes; tests/examples/test_training.py runs an epoch of each."""
SHOWN = {
    "export_and_prove": r"verdict: passed.*\n举头望明月，低头思故乡。",
    "stream_a_chat": r"孤舟蓑笠翁，独钓寒江雪。  \(stop\)\n(.*\n)*.*欲穷千里目，更上一层楼。",
    "search_by_meaning": r"^[01]\.\d+ {2}.*举头望明月",
    "choose_an_answer": r"^ +-0\.\d+ a token  床前明月光，疑是地上霜。  what it would write\n +-\d\.\d+",
    "perplexity_of_texts": r"a poem it knows +perplexity +\d\.\d\d.*\nthe same, shuffled +perplexity +\d{2,}",
    "steer_the_text": r"as it is +床前明月光，'疑是地上霜。.*\nno full stop +床前明月光，'[^。]*'\nno character twice",
    "choose_a_recipe": r"(\S+ +\d+\.\d MB  KL .*\n){3}smallest within 0\.0005: int8-token",
    "fill_blanks": r"春眠不觉晓，处处闻啼鸟。.+花落知多少。 \| .+\n光 .*\n(风|人) ",
    "ask_a_server": r"夜来风雨声，花落知多少。\n孤舟蓑笠翁，独钓寒江雪。",
    "sign_what_was_proven": r"as it was signed: holds\na byte later: does not hold",
}
NEEDED = {"ask_a_server": ("fastapi", "openai"), "sign_what_was_proven": ("model_signing",)}


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SHOWN.keys() | TRAINING


@pytest.mark.parametrize("name", SHOWN)
def test_examples_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [package for package in NEEDED.get(name, ()) if find_spec(package) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} of the extras is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert re.search(SHOWN[name], shown, flags=re.MULTILINE), shown


def test_one_says_so_where_a_model_is_missing(tmp_path: Path) -> None:
    """A path on the command line takes the embedded model's place."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "choose_an_answer.py"), str(tmp_path / "nothing")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "nothing" in result.stderr.splitlines()[-1]
