"""The real ``tritonserver``, of the wheel nvidia-pytriton, on this machine's processor; and a client's requests."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import uuid
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

HOME = Path(sys.prefix) / "triton"
"""Where ``make test`` puts the wheel, and a numpy that its backend can read."""
SERVER = HOME / "pytriton" / "tritonserver"
STUB = SERVER / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")
DTYPES = {"FP32": np.float32, "INT32": np.int32, "UINT64": np.uint64, "BOOL": np.bool_, "BYTES": np.object_}


def missing() -> str | None:
    """What keeps the server from running here; None for nothing."""
    if not STUB.is_file():
        return f"no tritonserver for this Python in {HOME}; make test puts it, on Linux on x86-64"
    if not (HOME / "numpy").is_dir():
        return f"no numpy 1 in {HOME}, and this server's backend reads no other"
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return "the backend needs libpython, and this Python was built without"
    if find_spec("tritonclient") is None:
        return "tritonclient is not installed; make test installs it"
    return None


@dataclass(slots=True, kw_only=True)
class Server:
    """One that runs. Addresses are of this machine."""

    grpc: str
    http: str
    metrics: str
    log: Path

    def told(self, name: str, **labels: str) -> float:
        """A metric's sum over all that have these labels."""
        text = urllib.request.urlopen(f"http://{self.metrics}/metrics").read().decode()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
        return sum(float(line.split()[-1]) for line in lines if all(one in line for one in wanted))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _environment(folder: Path, *, numpy_1: bool) -> dict[str, str]:
    """Of a server whose Python finds what this one finds, in another numpy's company where that is wanted."""
    venv.create(folder / "python", with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "python")}))
    found = [str(HOME)] if numpy_1 else []
    found += [str(ROOT), *(path for path in sys.path if "site-packages" in path)]
    (packages / "found.pth").write_text("\n".join(found))
    libraries = f"{HOME / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    path = f"{folder / 'python' / 'bin'}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"LD_LIBRARY_PATH": libraries, "PATH": path}


@contextmanager
def started(repository: Path, folder: Path, *words: str, numpy_1: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process, which is ended with what it started; its log is ``folder / "log"``."""
    backend = folder / "backends" / "python"
    shutil.copytree(SERVER / "backends" / "python", backend)
    shutil.copy(STUB, backend)
    command = [str(SERVER / "bin" / "tritonserver"), f"--model-repository={repository}"]
    region = f"glm_export_{uuid.uuid4().hex}"
    command += [f"--backend-directory={backend.parent}", f"--backend-config=python,shm-region-prefix-name={region}"]
    command += words
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=_environment(folder, numpy_1=numpy_1),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            # Who is killed cannot give back the memory it shares with its backend.
            for left in SHARED_MEMORY.glob(f"{region}*"):
                left.unlink()


@contextmanager
def serving(repository: Path, folder: Path, *words: str) -> Iterator[Server]:
    """A server that is ready."""
    ports = free_ports(3)
    grpc, http, metrics = (f"127.0.0.1:{port}" for port in ports)
    listening = [f"--{name}-port={port}" for name, port in zip(("grpc", "http", "metrics"), ports, strict=True)]
    listening += [f"--{name}-address=127.0.0.1" for name in ("grpc", "http", "metrics")]
    with started(repository, folder, *listening, *words) as process:
        end = time.monotonic() + 60
        # Metrics are told at a port of their own, which is opened last.
        while not (_ready(f"{http}/v2/health/ready") and _ready(f"{metrics}/metrics")):
            assert process.poll() is None, (folder / "log").read_text(errors="replace")[-3000:]
            assert time.monotonic() < end, "the server is not ready after a minute"
            time.sleep(0.05)
        yield Server(grpc=grpc, http=http, metrics=metrics, log=folder / "log")


def _ready(place: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://{place}").status == 200)
    except OSError:
        return False


@dataclass(slots=True)
class Answer:
    """What came of a request. ``texts``: of each response. ``error``: None where it went well."""

    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)
    error: str | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)


def _inputs(given: dict[str, Any]) -> list[Any]:
    """Tensors by the types of the model's config."""
    from tritonclient.grpc import InferInput

    from glm_export.serving.triton.tensors import INPUTS

    kinds = {tensor.name: tensor.dtype.replace("STRING", "BYTES") for tensor in INPUTS}
    tensors = []
    for name, value in given.items():
        kind = kinds.get(name, "BYTES")
        items = value if isinstance(value, list) else [value]
        items = [item.encode() if isinstance(item, str) else item for item in items]
        tensor = InferInput(name, [len(items)], kind)
        tensor.set_data_from_numpy(np.array(items, DTYPES[kind]))
        tensors.append(tensor)
    return tensors


class Stream:
    """A client's stream, one request after another. Leaving the block gives up what is not answered."""

    def __init__(self, server: Server) -> None:
        from tritonclient.grpc import InferenceServerClient

        self.client = InferenceServerClient(server.grpc)
        self._came: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def __enter__(self) -> Stream:
        self.client.start_stream(lambda result, error: self._came.put((result, error)))
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_stream(cancel_requests=True)
        self.client.close()

    def begin(self, model: str, *, outputs: Sequence[str] = (), **inputs: Any) -> None:
        """Send a request."""
        from tritonclient.grpc import InferRequestedOutput

        wanted = [InferRequestedOutput(name) for name in outputs] or None
        self.client.async_stream_infer(model, _inputs(inputs), outputs=wanted, enable_empty_final_response=True)

    def take(self, answer: Answer) -> bool:
        """One response more; whether it is the last."""
        result, error = self._came.get(timeout=60)
        if error is not None:
            answer.error = str(error)
            return True
        response = result.get_response()
        found = {output.name: result.as_numpy(output.name) for output in response.outputs}
        if "text_output" in found:
            answer.texts.append(found["text_output"][0].decode())
        if "finish_reason" in found:
            answer.reasons.append(found["finish_reason"][0].decode())
            answer.ids += found["output_ids"].tolist()
            answer.counts.append((int(found["num_input_tokens"][0]), int(found["num_output_tokens"][0])))
        return bool(response.parameters["triton_final_response"].bool_param)

    def ask(self, model: str, **inputs: Any) -> Answer:
        """Send a request, and wait for its end."""
        answer = Answer()
        self.begin(model, **inputs)
        while not self.take(answer):
            pass
        return answer
