"""The model in the real ``tritonserver``: one server for all, asked by the client that people have."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.generation.generate import generate_ids
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping
from glm_export.serving.options import ServeOptions
from glm_export.serving.triton.options import RepositoryOptions
from glm_export.serving.triton.repository import write_model
from glm_export.sessions.session import Session
from tests.helpers import tritonserver
from tests.helpers.tritonserver import Answer, Server, Stream

pytestmark = pytest.mark.skipif(tritonserver.missing() is not None, reason=str(tritonserver.missing()))
MODEL, ROWS = "poems", 4
LINES = (
    "千山鸟飞绝，万径人踪灭。", "床前明月光，疑是地上霜。", "春眠不觉晓，处处闻啼鸟。", "白日依山尽，黄河入海流。",
    "红豆生南国，春来发几枝。", "空山不见人，但闻人语响。",
)  # fmt: skip
ENDLESS = {"text_input": LINES[0], "sampling_parameters": json.dumps({"ignore_eos": True})}
"""A request that ends where it must."""
LONG = 450


@dataclass(frozen=True, kw_only=True)
class Running:
    """The server, and the same model in this process."""

    server: Server
    session: Session

    def wait(self, done: Callable[[], bool]) -> None:
        """Until something is so, half a minute at most."""
        end = time.monotonic() + 30
        while not done():
            assert time.monotonic() < end
            time.sleep(0.02)

    @property
    def running(self) -> float:
        """Rows that are written."""
        return self.server.told("glm_requests_running", model=MODEL)

    def ended(self, reason: str) -> float:
        """Requests that ended so."""
        return self.server.told("glm_requests_total", finish_reason=reason)


@pytest.fixture(scope="module")
def triton(demo_program: OnnxProgram, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A repository that was copied elsewhere, as to a bucket, and its server."""
    folder = tmp_path_factory.mktemp("triton")
    options = ServeOptions(max_batch=ROWS, drain_seconds=20.0)
    write_model(demo_program.folder, folder / "written", RepositoryOptions(name=MODEL), options)
    shutil.copytree(folder / "written", folder / "models")
    shutil.rmtree(folder / "written")
    words = ("--model-control-mode=explicit", f"--load-model={MODEL}")
    with (
        api.load_session(demo_program) as session,
        tritonserver.serving(folder / "models", folder, *words) as server,
    ):
        yield Running(server=server, session=session)


def endless(session: Session, count: int) -> str:
    """What the model writes where nothing ends it."""
    ids = session.encode(ENDLESS["text_input"])
    (row,) = generate_ids(session, [ids], stopping=Stopping(max_new_tokens=count))
    return session.tokenizer.decode(row.ids)


def sampling(number: int) -> dict[str, Any]:
    """Greedy and drawn in turn."""
    return {} if number % 2 else {"temperature": 0.9, "top_p": 0.95, "top_k": 50, "seed": number}


def test_many_clients_at_once_get_what_generate_writes(triton: Running) -> None:
    """More than there are rows; streamed and whole, greedy and drawn; and they were written together."""

    def ask(number: int) -> Answer:
        with Stream(triton.server) as stream:
            ready.wait()
            line = LINES[number % len(LINES)]
            return stream.ask(
                MODEL, text_input=line, max_tokens=40, stream=number % 3 > 0, min_tokens=24, **sampling(number)
            )

    steps = triton.server.told("glm_engine_steps_total")
    clients = 2 * len(LINES)
    ready = threading.Barrier(clients)
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(clients)))
    for number, answer in enumerate(answers):
        assert answer.error is None
        wanted = alone(triton.session, LINES[number % len(LINES)], Sampling(**sampling(number)))
        assert (answer.text, answer.ids) == wanted, number
        assert len(answer.texts) == 1 if number % 3 == 0 else len(answer.texts) > 5
        assert sum(written for _, written in answer.counts) == len(answer.ids)
    assert len({answer.text for answer in answers}) > len(LINES)
    written = sum(len(answer.ids) for answer in answers)
    assert triton.server.told("glm_engine_steps_total") - steps < written


def alone(session: Session, line: str, chosen: Sampling) -> tuple[str, list[int]]:
    """Text and ids that the engine of this process writes, with nobody beside."""
    from glm_export.serving.engine import Engine
    from glm_export.serving.request import Request
    from glm_export.tokenizers import stop_ids

    engine = Engine(session, prefix_bytes=0)
    stops = frozenset(stop_ids(session.config, session.tokenizer))
    prompt = session.prompt(session.encode(line))
    engine.submit(
        Request(key="0", prompt=prompt, sampling=chosen, max_new_tokens=40, min_new_tokens=24, stop_ids=stops)
    )
    ids: list[int] = []
    while not engine.idle:
        ids += [event.token for event in engine.step() if event.token is not None]
    return session.tokenizer.decode(ids), ids


def test_one_request_in_every_form_is_what_generate_says(triton: Running) -> None:
    """``glm-export generate`` calls the same function."""
    line = LINES[0]
    wanted = api.generate(triton.session, line, max_new_tokens=40)
    drawn = Sampling(temperature=0.7, seed=11)
    wanted_drawn = api.generate(triton.session, line, max_new_tokens=40, sampling=drawn)
    with Stream(triton.server) as stream:
        whole = stream.ask(MODEL, text_input=line)
        assert (whole.texts, whole.reasons) == ([wanted], ["stop"])
        streamed = stream.ask(MODEL, text_input=line, stream=True)
        assert (streamed.text, streamed.ids) == (wanted, whole.ids)
        assert len(streamed.texts) > 8
        assert streamed.reasons == [""] * (len(streamed.texts) - 1) + ["stop"]
        assert stream.ask(MODEL, text_input=line, temperature=0.7, seed=11).text == wanted_drawn
        as_json = json.dumps({"temperature": "0.7", "seed": 11})
        assert stream.ask(MODEL, text_input=line, sampling_parameters=as_json).text == wanted_drawn
        ids = triton.session.encode(line)
        by_ids = stream.ask(MODEL, input_ids=ids)
        assert (by_ids.text, by_ids.counts) == (wanted, [(len(ids), len(whole.ids))])
        assert stream.ask(MODEL, text_input=line, exclude_input_in_output=False).text == line + wanted
        # A stop word is cut off, also where it comes in two tokens of a stream.
        for streams in (False, True):
            cut = stream.ask(MODEL, text_input=line, stop_words=["翁，独"], stream=streams)
            assert (cut.text, cut.reasons[-1]) == (wanted.split("翁")[0], "stop")
            # What could have become a stop word and did not is told in the end.
            assert stream.ask(MODEL, text_input=line, stop_words=["。的"], stream=streams).text == wanted
        few = stream.ask(MODEL, text_input=line, max_tokens=3)
        assert (few.ids, few.reasons) == (whole.ids[:3], ["length"])
        told = Answer()
        stream.begin(MODEL, outputs=["text_output"], text_input=line)
        assert stream.take(told)
        assert (told.texts, told.reasons) == ([wanted], [])


def test_a_conversation(triton: Running) -> None:
    """Names of special tokens in it are text: a character without width keeps them apart."""
    asked, meant = ([{"role": "user", "content": f"春眠不觉晓，[{apart}gMASK]"}] for apart in ("", "\u200b"))
    with Stream(triton.server) as stream:
        answer = stream.ask(MODEL, messages=json.dumps(asked), max_tokens=20)
    given: Any = meant
    assert answer.text.strip() == api.chat(triton.session, given, max_new_tokens=20)
    assert answer.counts[0][0] == len(triton.session.tokenizer.chat(given))
    given = asked
    assert answer.counts[0][0] != len(triton.session.tokenizer.chat(given))


def test_by_http(triton: Running) -> None:
    def post(door: str, **body: Any) -> str:
        url = f"http://{triton.server.http}/v2/models/{MODEL}/{door}"
        return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode())).read().decode()

    wanted = api.generate(triton.session, LINES[1], max_new_tokens=40)
    assert json.loads(post("generate", text_input=LINES[1]))["text_output"] == wanted
    lines = post("generate_stream", text_input=LINES[1], stream=True).split("\n\n")
    pieces = [json.loads(line.removeprefix("data: "))["text_output"] for line in lines if line]
    assert "".join(pieces) == wanted
    assert len(pieces) > 8
    with pytest.raises(urllib.error.HTTPError) as error:
        post("generate", text_input="a", max_tokens=0)
    assert "max_tokens is a whole number" in error.value.read().decode()


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({}, "a request has one of text_input, input_ids, messages; found none"),
    ({"input_ids": []}, "empty"),
    ({"input_ids": [2815, 2816]}, "token ids [2816] lie outside the vocabulary of 2816"),
    ({"input_ids": [300] * 600}, "the prompt has 600 tokens, the model's context 512"),
    ({"text_input": "a", "sampling_parameters": '{"beams": 2}'}, "sampling_parameters has no 'beams'"),
    ({"text_input": "a", "temperature": -1.0}, "temperature must be a number, 0 (greedy) or more, found -1.0"),
    ({"text_input": "a", "unknown": "b"}, "unexpected inference input 'unknown'"),
    ({"messages": '[{"role": "nobody", "content": "a"}]'}, "nobody"),
]


def test_what_cannot_be_is_an_error_and_hurts_nobody(triton: Running) -> None:
    with Stream(triton.server) as other, Stream(triton.server) as stream:
        # Somebody else is written all the while.
        other.begin(MODEL, **ENDLESS, max_tokens=LONG, stream=True)
        answer = Answer()
        assert not other.take(answer)
        for inputs, told in ERRORS:
            failed = stream.ask(MODEL, **inputs)
            assert told in str(failed.error), inputs
            assert "\n" not in str(failed.error)
            assert failed.texts == []
        while not other.take(answer):
            pass
        assert (answer.error, answer.text) == (None, endless(triton.session, LONG))
        assert stream.ask(MODEL, text_input=LINES[2]).text == api.generate(triton.session, LINES[2])


def test_who_leaves_frees_the_row(triton: Running) -> None:
    """Rows that are written and requests that wait; who came behind them goes on at once."""
    many = 12 * ROWS
    cancelled = triton.ended("cancelled")
    # On a busy machine rows may end before it is seen that nobody waits: then there was nothing to see.
    for _ in range(5):
        written = triton.server.told("glm_generation_tokens_total")
        with Stream(triton.server) as stays:
            with Stream(triton.server) as leaves:
                for _ in range(many):
                    leaves.begin(MODEL, **ENDLESS, max_tokens=LONG, stream=True)
                leaves.take(Answer())
                stays.begin(MODEL, **ENDLESS, max_tokens=LONG)
            answer = Answer()
            while not stays.take(answer):
                pass
        assert (answer.text, answer.reasons) == (endless(triton.session, LONG), ["length"])
        triton.wait(lambda: triton.running + triton.server.told("glm_requests_waiting") == 0)
        # All of them would take many seconds.
        assert triton.server.told("glm_generation_tokens_total") - written < many * LONG
        if triton.ended("cancelled") > cancelled:
            break
    assert triton.ended("cancelled") > cancelled


def test_unloading_answers_what_was_accepted(triton: Running) -> None:
    with Stream(triton.server) as stream:
        stream.begin(MODEL, **ENDLESS, max_tokens=LONG, stream=True)
        answer = Answer()
        assert not stream.take(answer)
        stream.client.unload_model(MODEL)
        while not stream.take(answer):
            pass
        assert (answer.error, answer.text) == (None, endless(triton.session, LONG))
    with Stream(triton.server) as stream:
        assert "no available versions" in str(stream.ask(MODEL, text_input=LINES[3]).error)
        stream.client.load_model(MODEL)
    with Stream(triton.server) as stream:
        assert stream.ask(MODEL, text_input=LINES[3]).text == api.generate(triton.session, LINES[3])


def test_a_parameter_that_cannot_be_keeps_the_model_from_loading(triton: Running) -> None:
    with Stream(triton.server) as stream:
        config = stream.client.get_model_config(MODEL, as_json=True)["config"]
        config["parameters"]["max_batch"]["string_value"] = "many"
        with pytest.raises(Exception, match=r"parameter max_batch of config\.pbtxt cannot be 'many'"):
            stream.client.load_model(MODEL, config=json.dumps(config))
        # The one that was loaded goes on.
        assert stream.ask(MODEL, text_input=LINES[3]).text == api.generate(triton.session, LINES[3])


STEP = """
import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        file = args["model_repository"] + "/1/model.onnx"
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answered(request) for request in requests]

    def answered(self, request):
        feeds = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        names = [one.name for one in self.session.get_outputs()]
        found = zip(names, self.session.run(names, feeds))
        return triton.InferenceResponse([triton.Tensor(name, value) for name, value in found])
"""
"""Stands for the ONNX Runtime backend, which is not in the wheel; Triton's own part is the real one."""


def test_the_server_takes_the_config_of_a_step(triton: Running, demo_program: OnnxProgram) -> None:
    """Names, dtypes and shapes, a past without columns among them, as Triton's core checks them."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    models = triton.server.log.parent / "models"
    folder = write_model(demo_program.folder, models, RepositoryOptions(name="step", backend="onnxruntime")).folder
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
    (folder / "1" / "model.py").write_text(STEP)
    client = InferenceServerClient(triton.server.grpc)
    client.load_model("step")
    said = client.get_model_config("step").config
    kinds = {np.dtype(np.int64): "INT64", np.dtype(np.float32): "FP32"}

    def called(feeds: dict[str, np.ndarray]) -> Any:
        inputs = [InferInput(name, list(value.shape), kinds[value.dtype]) for name, value in feeds.items()]
        for one, value in zip(inputs, feeds.values(), strict=True):
            one.set_data_from_numpy(value)
        return client.infer("step", inputs)

    ids = new = triton.session.encode(LINES[0])
    past = {
        one.name: np.zeros([1 if at == 0 else max(0, dim) for at, dim in enumerate(one.dims)], np.float32)
        for one in said.input
        if one.name.startswith("past")
    }
    for _ in range(13):
        places = [[*range(len(ids))][-len(new) :]]
        told = {"input_ids": [new], "attention_mask": [[1] * len(ids)], "position_ids": places}
        result = called({name: np.array(value, np.int64) for name, value in told.items()} | past)
        past = {name: result.as_numpy(name.replace("past_key_values", "present")) for name in past}
        new = [int(result.as_numpy("logits")[0, -1].argmax())]
        ids = ids + new
    assert triton.session.tokenizer.decode(ids[-13:]) == api.generate(triton.session, LINES[0])
    # Fewer heads than the config has are refused by the core.
    fewer = {name: value[:, :1] for name, value in past.items()}
    with pytest.raises(Exception, match=r"unexpected shape for input 'past_key_values\.\d\.\w+'"):
        called({name: np.array(value, np.int64) for name, value in told.items()} | fewer)
    client.close()


def test_a_damaged_file_keeps_the_model_from_loading(triton: Running, tmp_path: Path) -> None:
    """Last, since the files are the server's."""
    weights = next(triton.server.log.parent.glob("models/*/1/model/model.onnx.data"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    with Stream(triton.server) as stream:
        stream.client.unload_model(MODEL)
        triton.wait(lambda: not stream.client.is_model_ready(MODEL))
        with pytest.raises(Exception, match=r"model\.onnx\.data is damaged or was changed"):
            stream.client.load_model(MODEL)


def test_a_numpy_that_the_backend_misreads_is_refused(demo_program: OnnxProgram, tmp_path: Path) -> None:
    write_model(demo_program.folder, tmp_path / "models", RepositoryOptions(name=MODEL))
    ports = [f"--{name}-port={port}" for name, port in zip(("grpc", "http"), tritonserver.free_ports(2), strict=True)]
    with tritonserver.started(tmp_path / "models", tmp_path, "--allow-metrics=false", *ports, numpy_1=False) as process:
        assert process.wait(60) != 0
    assert "cannot read arrays of numpy 2" in (tmp_path / "log").read_text(errors="replace")
