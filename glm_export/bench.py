"""How fast a model reads and writes, what memory it takes, and how near that is to what the memory allows.

The model runs in a process of its own (``python -m glm_export.bench``), so that memory is the model's alone; another
one measures how fast memory can be read, before and after.

A decode step cannot be faster than reading every weight it uses and the cache once: that time is the floor here. Only
weights small enough to stay in the processor's cache from step to step go below it.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glm_export import errors
from glm_export.artifacts import OnnxProgram, is_engine, is_program, load_program
from glm_export.checkpoint import Checkpoint
from glm_export.config import GlmConfig
from glm_export.engines.folder import Engine, load_engine
from glm_export.errors import EnvironmentMissingError, GlmExportError, InputError
from glm_export.feeds import Feeds, Prompt
from glm_export.machine import Machine, read_bandwidth, resident_bytes, this_machine
from glm_export.sessions import Session
from glm_export.signature import DTYPE_BYTES, past_names
from glm_export.step_bytes import program_step_bytes, torch_step_bytes

if TYPE_CHECKING:  # runtimes are imported where they are used
    from glm_export.sessions.tensorrt import EngineSession

PACKAGES = ("glm-export", "onnxruntime", "onnxruntime-gpu", "torch", "numpy")
WARM_UP_STEPS = 4
SAMPLED_EVERY_S = 0.02
FIRST_PLAIN_ID = 3
"""Prompts are random ids from here on; those below are usually special."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure. ``threads`` None: as many as a session takes by itself."""

    prompt_tokens: int = 512
    context: int = 128
    new_tokens: int = 64
    batch: int = 1
    rounds: int = 3
    threads: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise InputError(f"{field.name} must be at least 1, found {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Medians over the rounds; a step's percentiles are over the steps of all rounds.

    Sizes are bytes. ``step_weight_bytes`` are the weights a decode step reads: an embedding table counts with the rows
    it gives. ``libraries_anonymous_bytes`` was held before the model was opened, and is part of the peak. Figures of
    memory and bandwidth are None where the system does not tell.
    """

    model: str
    runtime: str
    dialect: str | None
    dtype: str
    device: str
    options: BenchOptions
    load_s: float
    prefill_tokens_s: float
    first_token_s: float
    decode_tokens_s: float
    step_p50_ms: float
    step_p90_ms: float
    step_p99_ms: float
    peak_anonymous_bytes: int | None
    peak_file_bytes: int | None
    libraries_anonymous_bytes: int | None
    step_weight_bytes: int
    step_cache_bytes: int
    bandwidth_bytes_s: float | None
    machine: Machine
    device_memory_bytes: int | None = None
    """In use on the GPU, by all; of engines."""

    @property
    def floor_ms(self) -> float | None:
        """The least time a decode step can take at the bandwidth measured beside it."""
        if self.bandwidth_bytes_s is None:
            return None
        return 1000 * (self.step_weight_bytes + self.step_cache_bytes) / self.bandwidth_bytes_s

    @property
    def share_of_floor(self) -> float | None:
        """Decoding speed over that of steps that take no longer than the floor; 1 is reading at full bandwidth."""
        return None if self.floor_ms is None else self.decode_tokens_s * self.floor_ms / (1000 * self.options.batch)

    def to_json(self) -> dict[str, Any]:
        """Plain values, floor and share included."""
        return asdict(self) | {"floor_ms": self.floor_ms, "share_of_floor": self.share_of_floor}


def bench(model: str | Path, options: BenchOptions | None = None) -> BenchReport:
    """Measure a model.

    Args:
        model: an engine (TensorRT), an exported folder (ONNX Runtime) or a checkpoint (PyTorch, float32).
        options: what to measure.

    Raises:
        GlmExportError: the model cannot be opened or run here, or its context is too short for the options.
    """
    options = options or BenchOptions()
    refuse_beyond_context(open_model(model).config, options)
    from glm_export.sessions.ort import usable_threads

    options = replace(options, threads=options.threads or usable_threads())
    before = _bandwidth("cpu", options)
    facts, peak = _measured_apart(["measure", str(model), json.dumps(asdict(options))])
    after = _bandwidth(facts["device"], options)
    # A floor is what the memory can do at its best; the first pass read the processor's.
    passes = [one for one in (before if facts["device"] == "cpu" else None, after) if one is not None]
    return BenchReport(
        model=str(model), options=options, machine=this_machine(PACKAGES),
        bandwidth_bytes_s=max(passes, default=None), peak_anonymous_bytes=peak and peak[0],
        peak_file_bytes=peak and peak[1], **facts,
    )  # fmt: skip


def open_model(model: str | Path) -> OnnxProgram | Engine | Checkpoint:
    """What ``model`` names, without its weights."""
    if is_engine(Path(model)):
        return load_engine(Path(model))
    if is_program(Path(model)):
        return load_program(Path(model))
    # What exports is not needed to run a program, and would count as its memory.
    from glm_export import api

    return api.open_checkpoint(model)


def _bandwidth(device: str, options: BenchOptions) -> float | None:
    answer, _ = _measured_apart(["bandwidth", device, str(options.threads)])
    return None if answer["bandwidth"] is None else float(answer["bandwidth"])


def refuse_beyond_context(config: GlmConfig, options: BenchOptions) -> None:
    """Check that what is to be read and written fits the model.

    Raises:
        InputError: it does not.
    """
    for name, tokens in (
        ("prompt tokens", options.prompt_tokens),
        ("context and new tokens", options.context + options.new_tokens),
    ):
        if tokens > config.max_positions:
            raise InputError(
                f"{tokens} {name} are wanted, the model's context is {config.max_positions}; ask for fewer"
            )


def _measured_apart(arguments: list[str]) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Run one of this module's commands in a process of its own; its answer and its peak memory."""
    command = [sys.executable, "-m", "glm_export.bench", *arguments]
    # Files, because a pipe that nobody reads meanwhile holds only so much.
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(command, stdout=printed, stderr=complaints)
        try:
            peak = _watch(process)
        finally:
            process.kill()
        code = process.wait()
        printed.seek(0)
        complaints.seek(0)
        lines, said = (file.read().strip().splitlines() for file in (printed, complaints))
    if code or not lines:
        why = f"signal {-code}, which may mean too little memory" if code < 0 else f"exit code {code}"
        raise EnvironmentMissingError(
            f"the measuring process ended with {why}: {said[-1] if said else 'it said nothing'}"
        )
    answer: dict[str, Any] = json.loads(lines[-1])
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return answer, peak


def _watch(process: subprocess.Popen[bytes]) -> tuple[int, int] | None:
    """Wait for a process to end, and say the most memory it held."""
    peak: tuple[int, int] | None = None
    while process.poll() is None:
        now = resident_bytes(process.pid)
        if now is not None:
            peak = now if peak is None else (max(peak[0], now[0]), max(peak[1], now[1]))
        time.sleep(SAMPLED_EVERY_S)
    return peak


def measure(model: str, options: BenchOptions) -> dict[str, Any]:
    """Load and run a model in this process; the fields of :class:`BenchReport` that come from it."""
    before = resident_bytes()
    started = time.perf_counter()
    with _open_session(model, options.threads) as session:
        loaded = time.perf_counter() - started
        rounds = _Rounds(session, options)
        return (
            {"load_s": loaded, "libraries_anonymous_bytes": before and before[0]}
            | rounds.run()
            | _facts(session, options)
        )


def _open_session(model: str, threads: int | None) -> Session:
    # Runtimes are imported where they are used: what is not used takes no memory.
    opened = open_model(model)
    if isinstance(opened, OnnxProgram):
        from glm_export.sessions.ort import OrtSession

        return OrtSession(opened, threads=threads)
    if isinstance(opened, Engine):
        from glm_export.sessions.tensorrt import EngineSession

        return EngineSession(opened)
    import torch

    from glm_export.sessions.torch import TorchSession

    if threads is not None:
        torch.set_num_threads(threads)
    return TorchSession(opened)


def _facts(session: Session, options: BenchOptions) -> dict[str, Any]:
    """Runtime, device, and the bytes of a decode step."""
    from glm_export.sessions.ort import CUDA, OrtSession
    from glm_export.sessions.tensorrt import EngineSession
    from glm_export.sessions.torch import TorchSession

    if isinstance(session, OrtSession):
        program = session.program
        on_cuda = session.runtime.get_providers()[0] == CUDA
        signature = program.signature
        facts: dict[str, Any] = {
            "runtime": "onnxruntime", "dialect": program.dialect, "dtype": program.dtype,
            "device": "cuda" if on_cuda else "cpu",
            "step_weight_bytes": program_step_bytes(program.model_path, options.batch),
        }  # fmt: skip
    elif isinstance(session, EngineSession):
        signature, facts = session.program.signature, _engine_facts(session, options)
    else:
        assert isinstance(session, TorchSession)
        signature = session.signature
        weight = session.model.head.weight
        facts = {
            "runtime": "pytorch", "dialect": None, "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type, "step_weight_bytes": torch_step_bytes(session.model, options.batch),
        }  # fmt: skip
    config = session.config
    number_bytes = DTYPE_BYTES[signature.input(past_names(0)[0]).dtype]
    columns = options.context + options.new_tokens // 2
    values = 2 * config.num_layers * options.batch * columns * config.kv_heads * config.head_dim
    return facts | {"step_cache_bytes": values * number_bytes}


def _engine_facts(session: EngineSession, options: BenchOptions) -> dict[str, Any]:
    import torch

    engine, bytes_read = session.engine, session.engine.manifest["step_bytes"]
    free, total = torch.cuda.mem_get_info()
    return {
        "runtime": f"{engine.runtime} {engine.version}", "dialect": engine.program.dialect,
        "dtype": engine.program.dtype, "device": "cuda", "device_memory_bytes": total - free,
        "step_weight_bytes": bytes_read["weights"] + options.batch * bytes_read["row"],
    }  # fmt: skip


class _Rounds:
    """A session put through the same work several times, with other random tokens each time."""

    def __init__(self, session: Session, options: BenchOptions) -> None:
        self._session = session
        self._options = options
        self._random = np.random.default_rng(0)

    def run(self) -> dict[str, Any]:
        """Medians over the rounds, after a warm-up of every shape."""
        options = self._options
        self._prefill(options.prompt_tokens)
        self._decode(min(WARM_UP_STEPS, options.new_tokens))
        prefills, firsts, rates = [], [], []
        steps: list[float] = []
        for _ in range(options.rounds):
            prefill, first = self._prefill(options.prompt_tokens)
            prefills.append(options.batch * options.prompt_tokens / prefill)
            firsts.append(first)
            taken = self._decode(options.new_tokens)
            rates.append(options.batch * len(taken) / sum(taken))
            steps += taken
        return {
            "prefill_tokens_s": statistics.median(prefills),
            "first_token_s": statistics.median(firsts),
            "decode_tokens_s": statistics.median(rates),
            **{f"step_p{percent}_ms": 1000 * percentile(steps, percent) for percent in (50, 90, 99)},
        }

    def _prompt(self, tokens: int) -> Feeds:
        config = self._session.config
        first = min(FIRST_PLAIN_ID, config.vocab_size - 1)
        rows = self._random.integers(first, config.vocab_size, (self._options.batch, tokens)).tolist()
        # A prefix family's context and its start-of-piece token; which ids they are changes no timing.
        context = tokens - 1 if config.prefix_mask else 0
        return self._session.feeds([Prompt(ids=tuple(row), context_length=context) for row in rows])

    def _prefill(self, tokens: int) -> tuple[float, float]:
        """Seconds to the logits, and to the first token chosen from them."""
        feeds = self._prompt(tokens)
        started = time.perf_counter()
        logits = self._session.prefill(feeds)
        read = time.perf_counter() - started
        _choose(logits)
        return read, time.perf_counter() - started

    def _decode(self, steps: int) -> list[float]:
        """Seconds of each greedy step: feeding, running, choosing."""
        feeds = self._prompt(self._options.context)
        chosen = _choose(self._session.prefill(feeds))
        last_position = self._session.config.max_positions - 1
        taken = []
        for _ in range(steps):
            started = time.perf_counter()
            feeds = feeds.followed_by(chosen, last_position)
            chosen = _choose(self._session.decode(feeds))
            taken.append(time.perf_counter() - started)
        return taken


def _choose(logits_BSV: np.ndarray[Any, Any]) -> list[int]:
    chosen: list[int] = logits_BSV[:, -1].argmax(axis=-1).tolist()
    return chosen


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def main(arguments: Sequence[str]) -> None:
    """``measure MODEL OPTIONS`` or ``bandwidth DEVICE THREADS``: one line of JSON, an error included."""
    command, *rest = arguments
    try:
        if command == "measure":
            answer = measure(rest[0], BenchOptions(**json.loads(rest[1])))
        else:
            answer = {"bandwidth": read_bandwidth(int(rest[1]), rest[0])}
    except GlmExportError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    # The runtimes print what they like; the last line is ours.
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
