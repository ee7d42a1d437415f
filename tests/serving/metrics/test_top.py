"""What a running server says of itself, and the table made of it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console

from glm_export.cli import cli
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.serving.metrics.reading import ModelLoad, Reading, loads, parsed, read_metrics
from glm_export.terminal.console import RESULTS
from glm_export.terminal.serving.top import LEAST_FIRST, table_of
from tests.helpers.http_servers import Quiet, listening
from tests.serving.http.conftest import start

__all__ = ["start"]
LINE = "春眠不觉晓，处处闻啼鸟。\n"
LONG = {"prompt": LINE, "temperature": 1.5, "max_tokens": 400, "logit_bias": {"2": -100}, "n": 8, "stream": True}
"""A request that takes its time."""


def test_sums_are_those_of_the_requests(start: Callable[..., Any]) -> None:
    with start("demo", "demo-glm", "--max-batch", "2") as (address, _):
        before = read_metrics(address)
        written = read = 0
        for most in (1, 5, 9):
            asked = {"prompt": LINE, "max_tokens": most, "logit_bias": {"2": -100}}
            usage = httpx.post(f"{address}/v1/completions", json=asked).json()["usage"]
            written, read = written + usage["completion_tokens"], read + usage["prompt_tokens"]
        now = read_metrics(f"{address}/v1/")
        values = now.models["demo"]
        assert (values["glm_generation_tokens_total"], values["glm_prompt_tokens_total"]) == (written, read)
        assert values["glm_requests_total"] == 3
        for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
            assert values[f"glm_{name}_seconds_count"] == 3
        assert values["glm_inter_token_latency_seconds_count"] == written - 3
        assert (
            0
            < values["glm_request_queue_time_seconds_sum"]
            < values["glm_time_to_first_token_seconds_sum"]
            < values["glm_e2e_request_latency_seconds_sum"]
        )
        demo, other = loads(before, now)
        seconds = now.at - before.at
        assert demo.written_rate == pytest.approx(written / seconds)
        assert demo.read_rate == pytest.approx(read / seconds)
        assert demo.first_token_s is not None
        assert (other.written_rate, other.first_token_s) == (0, None)
        text = httpx.get(f"{address}/metrics").text
        assert 'glm_time_to_first_token_seconds_bucket{le="+Inf",model="demo"} 3.0' in text


def test_one_table(start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a row is written; a key is wanted."""
    keys = tmp_path / "keys"
    keys.write_text("\nfirst\nsecond\n")
    with start("demo", "--api-key-file", str(keys), "--max-batch", "1") as (address, _):
        words = ["top", address, "--once", "--interval", "0.2"]
        refused = CliRunner().invoke(cli, words)
        assert refused.exit_code == 2
        assert "--api-key-file" in refused.output
        with httpx.stream(
            "POST", f"{address}/v1/completions", json=LONG, headers={"x-api-key": "second"}, timeout=60
        ) as stream:
            lines = stream.iter_lines()  # forgotten, it would leave
            next(lines)
            # Wide enough for a table: where it is not, rows become lines.
            monkeypatch.setattr(RESULTS, "_width", 200)
            shown = CliRunner().invoke(cli, [*words, "--api-key-file", str(keys)])
        assert shown.exit_code == 0, shown.output
        row = next(line for line in shown.output.splitlines() if "demo" in line)
        model, running, waiting, _, written, *_ = re.split(r"\s{2,}", row.strip())
        assert (model, running) == ("demo", "1")
        assert 1 <= int(waiting) < 8
        assert float(written) > 0


def busy(model: str, prefix_bytes: int, first_token_s: float | None) -> ModelLoad:
    rates = {"read_rate": 12_345.6, "written_rate": 1_234.5}
    return ModelLoad(
        model=model, running=8, waiting=1_234, prefix_bytes=prefix_bytes, first_token_s=first_token_s, **rates
    )


LOADS = [busy("demo", 0, None), busy("GLM-4-9B-0414-int8-token", 1_200_000_000, 12.3456)]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(60, ["prefixes", "read tokens/s"]), (80, ["prefixes"]), (120, []), (40, list(LEAST_FIRST))],
)
def test_the_live_table_is_whole_at_any_width(width: int, left_out: list[str]) -> None:
    """Rendered by rich: within the screen, every figure whole, and what has no room named."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table_of(LOADS, width))
    said = console.export_text()
    assert max(map(cell_len, said.splitlines())) <= width
    figures = {"waiting": "1,234", "read tokens/s": "12,345.6", "first token": "12,346 ms", "prefixes": "1.20 GB"}
    for name, figure in (figures | {"written tokens/s": "1,234.5", "running": "8"}).items():
        assert (f" {figure} " in said) is (name not in left_out), (name, said)
    assert "…" not in said
    caption = " ".join(said[said.rindex("┘") + 1 :].split())
    assert caption == (f"a wider screen shows {', '.join(left_out)}" if left_out else "")
    assert "".join(line.split("│")[1].strip() for line in said.splitlines() if "│" in line) == "".join(
        ["demo", LOADS[1].model]
    )
    # The control: drawn for a wider screen it is cut.
    cut = Console(width=40, file=io.StringIO(), record=True)
    cut.print(table_of(LOADS, 120))
    assert "12,346 ms" not in cut.export_text()


def test_a_server_that_began_anew_counts_from_nothing() -> None:
    then = Reading(models={"a": {"glm_generation_tokens_total": 100.0}}, at=0.0)
    now = Reading(models={"a": {"glm_generation_tokens_total": 30.0}, "b": {"glm_requests_running": 2.0}}, at=2.0)
    first, second = loads(then, now)
    assert (first.written_rate, second.running, second.written_rate) == (15.0, 2, 0.0)


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[bytes]]]:
    """Somebody else's server, and what it answers with."""
    answer = [b""]

    class Stranger(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(307 if answer[0].startswith(b"http") else 200)
            self.send_header("location", answer[0].decode("latin-1"))
            self.end_headers()
            self.wfile.write(answer[0])

    with listening(Stranger) as address:
        yield address, answer


def test_who_else_may_answer(stranger: tuple[str, list[bytes]]) -> None:
    address, answer = stranger
    for text in (b"", b"<html>", b"up 1.0\n", b'glm_requests_running{model="a"} x\n', b"http://127.0.0.1:1/"):
        answer[0] = text
        with pytest.raises(InputError):
            read_metrics(address, "secret")
    with pytest.raises(EnvironmentMissingError, match="nobody answers"):
        read_metrics("http://127.0.0.1:1")
    with pytest.raises((InputError, EnvironmentMissingError)):
        read_metrics("http://[")
    assert parsed(
        'glm_x_total{model="a",finish_reason="stop"} 1\nglm_x_total{model="a",finish_reason="length"} 2\n'
    ) == {"a": {"glm_x_total": 3.0}}
