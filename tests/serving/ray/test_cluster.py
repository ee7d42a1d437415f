"""A cluster of three nodes: the bits of one machine, and nothing lost where a node dies or an update goes round."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from ray import serve

from glm_export.errors import InputError
from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.cluster import deploy, joined, take_down
from glm_export.serving.ray.options import RayOptions
from tests.serving.ray.conftest import Nodes

LINES = ["春眠不觉晓，处处闻啼鸟。\n", "白日依山尽，黄河入海流。\n", "床前明月光，疑是地上霜。\n", "故人西辞黄鹤楼，"]
COMPLETE = "/v1/completions"
SPREAD = RayOptions(replicas=2, cpus=1, routing="load")
PATIENCE_S = 120.0


def body(number: int, tokens: int = 60) -> dict[str, Any]:
    drawn = {"temperature": 0} if number % 2 else {"temperature": 1.3, "seed": number}
    return {"prompt": LINES[number % 4] + "一" * (number % 7), "max_tokens": tokens, "ignore_eos": True, **drawn}


@dataclass
class Running:
    """An application on the cluster: ``options`` as it was deployed last."""

    nodes: Nodes
    source: Path
    options: ServeOptions
    spread: RayOptions = SPREAD
    client: httpx.Client = field(
        default_factory=lambda: httpx.Client(timeout=PATIENCE_S, limits=httpx.Limits(max_connections=None))
    )

    def post(self, asked: dict[str, Any], path: str = COMPLETE, **options: Any) -> httpx.Response:
        return self.client.post(f"http://127.0.0.1:{self.options.port}{path}", json=asked, **options)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(f"http://127.0.0.1:{self.options.port}{path}")

    def change(self, spread: RayOptions | None = None, **options: Any) -> None:
        self.options, self.spread = replace(self.options, **options), spread or self.spread
        deploy([str(self.source)], self.options, self.spread)

    def engines(self) -> int:
        """Replicas that run."""
        states = serve.status().applications["glm-export"].deployments[self.source.name].replica_states
        return sum(count for state, count in states.items() if state == "RUNNING")

    def await_engines(self, count: int) -> None:
        end = time.monotonic() + PATIENCE_S
        while self.engines() != count:
            assert time.monotonic() < end, f"{self.engines()} engines run, not {count}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def running(nodes: Nodes, ort_program: Path, free_port: int) -> Iterator[Running]:
    options = ServeOptions(max_batch=4, port=free_port, exact=True, drain_seconds=30)
    with joined(nodes.address):
        deploy([str(ort_program)], options, SPREAD)
        made = Running(nodes, ort_program, options)
        yield made
        made.client.close()
        take_down("glm-export", 10)
        serve.shutdown()


@contextmanager
def load(running: Running, clients: int, tokens: int = 60) -> Iterator[list[tuple[int, httpx.Response]]]:
    """Clients that ask one request after another until the block ends; every answer, with its request's number."""
    answers: list[tuple[int, httpx.Response]] = []
    ending, numbers = threading.Event(), iter(range(1 << 20))

    def ask() -> None:
        while not ending.is_set():
            number = next(numbers) % 24
            answers.append((number, running.post(body(number, tokens))))

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask) for _ in range(clients)]
        try:
            yield answers
        finally:
            ending.set()
        for one in asking:
            one.result()


def told(answer: dict[str, Any]) -> Any:
    """What was written, without the request's name and time."""
    return answer["choices"], answer["usage"]["completion_tokens"]


def test_bits_are_those_of_one_machine(running: Running, one_machine: Callable[..., list[dict[str, Any]]]) -> None:
    bodies = [body(number) | {"logprobs": 2} for number in range(12)]
    expected = one_machine(running.source, running.options, COMPLETE, bodies)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(running.post, bodies))
    assert [answer.status_code for answer in answers] == [200] * 12
    assert [told(answer.json()) for answer in answers] == [told(one) for one in expected]
    # Another seed is another text: equality says something.
    assert told(running.post(bodies[0] | {"seed": 99}).json()) != told(expected[0])


def test_doors_answer_for_all_engines(running: Running) -> None:
    assert [one["id"] for one in running.get("/v1/models").json()["data"]] == [running.source.name]
    replicas = {
        line.split('replica="')[1][:8] for line in running.get("/metrics").text.splitlines() if "replica=" in line
    }
    assert len(replicas) == 2
    assert running.get("/health").json() == {"status": "ok", "dead": []}
    refused = running.post(body(0) | {"model": "nobody"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert running.post({"prompt": "x" * 4000}).json()["error"]["code"] == "context_length_exceeded"
    named = running.post(body(0, 4), headers={"x-request-id": "mine"})
    assert named.headers.get_list("x-request-id") == ["mine"]
    assert named.json()["id"] == "cmpl-mine"
    assert running.client.post(f"http://127.0.0.1:{running.options.port}{COMPLETE}", content=b"{").status_code == 400


def test_who_leaves_frees_the_row(running: Running) -> None:
    asked = body(1, 400) | {"stream": True}
    address = f"http://127.0.0.1:{running.options.port}{COMPLETE}"
    assert 'finish_reason="cancelled"' not in running.get("/metrics").text
    with running.client.stream("POST", address, json=asked) as stream:
        next(stream.iter_lines())
    end = time.monotonic() + PATIENCE_S
    while 'finish_reason="cancelled"' not in running.get("/metrics").text:
        assert time.monotonic() < end, "the row is written on for nobody"
        time.sleep(0.2)


def test_an_update_to_what_is_not_there_changes_nothing(running: Running) -> None:
    with pytest.raises(InputError, match="nowhere is no folder"):
        deploy(["nowhere"], running.options, running.spread)
    assert running.post(body(0, 4)).status_code == 200


def test_an_update_goes_round_without_an_error(running: Running) -> None:
    with load(running, 6) as answers:
        time.sleep(1)
        running.change(max_body_megabytes=7)
        running.await_engines(2)
        time.sleep(1)
    assert len(answers) > 20
    assert {answer.status_code for _, answer in answers} == {200}


def test_a_node_that_dies_loses_no_answer(running: Running, one_machine: Callable[..., list[dict[str, Any]]]) -> None:
    """Streams that had begun on it end with an error; all else is answered, as one machine answers it."""
    expected = one_machine(running.source, running.options, COMPLETE, [body(number, 200) for number in range(24)])
    address = f"http://127.0.0.1:{running.options.port}{COMPLETE}"
    begun = threading.Semaphore(0)

    def stream(number: int) -> list[Any]:
        # Rows enough to be written for as long as this test needs.
        asked = body(number, 450) | {"stream": True, "n": 12}
        with running.client.stream("POST", address, json=asked) as answer:
            lines = []
            for line in filter(None, answer.iter_lines()):
                lines.append(line.removeprefix("data: "))
                if len(lines) == 1:
                    begun.release()
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    with ThreadPoolExecutor(2) as pool:
        streams = []
        for number in range(2):
            # The second one goes to the engine that has nothing to do: there is one on each node.
            streams.append(pool.submit(stream, number))
            assert begun.acquire(timeout=PATIENCE_S)
        with load(running, 4, 200) as answers:
            time.sleep(0.5)
            running.nodes.kill(0)
            before = len(answers)
            while len(answers) < before + 12:
                time.sleep(0.1)
        ended = [one.result() for one in streams]
    assert {answer.status_code for _, answer in answers} == {200}
    assert all(told(answer.json()) == told(expected[number]) for number, answer in answers)
    lost, whole = sorted(ended, key=lambda events: "error" not in events[-1])
    assert lost[-1]["error"]["code"] == "replica_lost"
    assert sum(choice["finish_reason"] == "length" for event in whole for choice in event["choices"]) == 12
    running.nodes.add()
    running.await_engines(2)


def test_a_conversation_stays_where_it_was_read(running: Running) -> None:
    def cached() -> tuple[int, int]:
        """Tokens read before, and tokens of prompts, of six conversations that take turns."""
        talks = [[{"role": "user", "content": f"{LINES[number % 4]}{number}" * 6}] for number in range(6)]
        read = total = 0
        for _ in range(3):
            for talk in talks:
                answer = running.post({"messages": talk, "max_tokens": 4, "temperature": 0}, "/v1/chat/completions")
                usage = answer.json()["usage"]
                read, total = read + usage["prompt_tokens_details"]["cached_tokens"], total + usage["prompt_tokens"]
                talk += [answer.json()["choices"][0]["message"], {"role": "user", "content": "再来一首"}]
        return read, total

    running.change(replace(SPREAD, routing="prefix"), exact=False)
    running.await_engines(2)
    read, total = cached()
    assert read > 0.5 * total


def test_load_brings_engines_and_takes_them_away(running: Running) -> None:
    spread = RayOptions(min_replicas=1, max_replicas=4, cpus=1, upscale_seconds=0.5, downscale_seconds=2)
    running.nodes.add(cpus=2)
    running.change(spread)
    running.await_engines(1)
    with load(running, 16, 200) as answers:
        running.await_engines(4)
    running.await_engines(1)
    assert {answer.status_code for _, answer in answers} == {200}
