"""Work that is spread over nodes: a file of requests while workers are killed, and ranges to the last bit."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason="the extra `ray` is not installed")


from glm_export import api
from glm_export.calibration.layerwise.shards import Opening, Spread
from glm_export.cluster.join import joined
from glm_export.cluster.options import WorkerOptions
from glm_export.cluster.spread import spread
from glm_export.errors import InputError
from glm_export.serving.batch import answer_batch, by_engine
from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.batch import by_workers
from tests.serving.ray.conftest import Nodes
from tests.serving.ray.test_cluster import body

OPTIONS = ServeOptions(max_batch=4, exact=True, threads=1)
LINES, KILLS = 120, 3


def written(folder: Path, count: int) -> Path:
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body(number, 200)}
        for number in range(count)
    ]
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def texts(path: Path) -> dict[str, Any]:
    told = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({one["custom_id"] for one in told}) == len(told)
    return {one["custom_id"]: one["response"]["body"]["choices"] for one in told}


def workers_of(kind: str) -> list[int]:
    """Processes of Ray's that are a worker of a kind."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().startswith(f"ray::{kind}".encode()):
                found.append(int(path.parent.name))
    return found


@contextmanager
def killing(kind: str, times: int, answers: Path) -> Iterator[list[int]]:
    """A worker killed at random, so many times, each after an answer more is there."""
    killed: list[int] = []
    ending = threading.Event()

    def kill() -> None:
        chance = random.Random(1)
        seen = 0
        while len(killed) < times and not ending.is_set():
            time.sleep(0.05 + chance.random() * 0.3)
            size = answers.stat().st_size if answers.exists() else 0
            alive = workers_of(kind)
            if size > seen and alive:
                victim = chance.choice(alive)
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)
                seen = size

    thread = threading.Thread(target=kill)
    thread.start()
    yield killed
    ending.set()
    thread.join()


def test_each_line_once_while_workers_die(nodes: Nodes, ort_program: Path, tmp_path: Path) -> None:
    requests, alone, answers = written(tmp_path, LINES), tmp_path / "alone.jsonl", tmp_path / "answers.jsonl"
    answer_batch(by_engine(str(ort_program), OPTIONS), requests, alone, OPTIONS)
    asked = WorkerOptions(ray=True, ray_address=nodes.address, workers=2)
    with killing("AnsweringWorker", KILLS, answers) as killed:
        report = answer_batch(by_workers(str(ort_program), OPTIONS, asked), requests, answers, OPTIONS)
    assert len(killed) == KILLS
    assert (report.lines, report.before, report.failed) == (LINES, 0, 0)
    assert texts(answers) == texts(alone)
    # What is there is kept: without its last lines, torn, the file is made whole by other workers or by none.
    whole = answers.read_bytes()
    answers.write_bytes(whole[: len(whole) // 2])
    again = answer_batch(by_workers(str(ort_program), OPTIONS, asked), requests, answers, OPTIONS)
    assert again.before == whole[: len(whole) // 2].count(b"\n")
    assert texts(answers) == texts(alone)


def test_a_model_that_cannot_be_loaded_is_one_line(nodes: Nodes, tmp_path: Path) -> None:
    asked = WorkerOptions(ray=True, ray_address=nodes.address, workers=1)
    with pytest.raises(InputError, match="nowhere"):
        answer_batch(by_workers("nowhere", OPTIONS, asked), written(tmp_path, 2), tmp_path / "out.jsonl", OPTIONS)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_ranges_are_those_of_one_process(nodes: Nodes, tmp_path: Path, one_thread: None) -> None:
    options: dict[str, Any] = {"corpus": "poems", "sequence_length": 64, "max_samples": 40}
    alone = api.calibrate("demo", tmp_path / "alone", **options)
    with joined(nodes.address):
        each = partial(spread, at_once=4, cpus=1)
        helped = Spread(each, Opening(api.open_checkpoint, ("demo",)))
        ranges = api.calibrate("demo", tmp_path / "helped", spread=helped, **options)
        other = Spread(each, Opening(api.open_checkpoint, ("demo-glm",)))
        with pytest.raises(InputError, match="another checkpoint"):
            api.calibrate("demo", tmp_path / "other", spread=other, **options)
        with pytest.raises(InputError, match="leave --ray out"):
            api.calibrate("demo", tmp_path / "rounded", spread=helped, recipe="int4-gptq", **options)
    fewer = api.calibrate("demo", tmp_path / "fewer", **options | {"max_samples": 39})
    assert digests(ranges.folder) == digests(alone.folder)
    assert digests(fewer.folder) != digests(alone.folder)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As each worker has, whose node has one processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
