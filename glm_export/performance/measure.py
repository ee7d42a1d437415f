"""One model loaded and run in this process; its figures as a line of JSON."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from glm_export.artifacts.engine import Engine, load_engine
from glm_export.artifacts.open import Kind, open_artifact
from glm_export.artifacts.program import OnnxProgram, load_program
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.errors import GlmExportError
from glm_export.generation.finite import require_finite
from glm_export.generation.generate import generate_steps
from glm_export.generation.stopping import Stopping
from glm_export.inputs.prompts import Prompt
from glm_export.machine.memory import read_bandwidth, resident_bytes
from glm_export.performance.report import BenchOptions
from glm_export.sessions.load import session_of
from glm_export.sessions.session import Session
from glm_export.spec.dtypes import STORED_BITS
from glm_export.spec.signature import past_names

AMONG_PACKAGES = {"onnxruntime", "pytorch"}
"""Runtimes whose version a report's machine says; an engine is tied to the one it was built by."""
WARM_UP_STEPS = 4
TOLD = "glm-export bench: "
"""How a line begins that tells whoever started this process how far it is: between what is timed, never within."""
LOADED, ROUND = "loaded", "round"
FIRST_PLAIN_ID = 3
"""Prompts are random ids from here on; those below are usually special."""


def open_model(model: str | Path) -> OnnxProgram | Engine | Checkpoint:
    """What ``model`` names, without its weights."""
    artifact = open_artifact(model)
    if artifact.kind is Kind.ENGINE:
        return load_engine(artifact.path)
    if artifact.kind is Kind.PROGRAM:
        return load_program(artifact.path)
    # What exports is not needed to run a program, and would count as its memory.
    from glm_export import api

    return api.open_checkpoint(model)


def measure(model: str, options: BenchOptions) -> dict[str, Any]:
    """Load and run a model in this process; the fields of :class:`BenchReport` that come from it."""
    before = resident_bytes()
    started = time.perf_counter()
    with session_of(open_model(model), threads=options.threads) as session:
        loaded = time.perf_counter() - started
        _tell(LOADED)
        rounds = _Rounds(session, options)
        return (
            {"load_s": loaded, "libraries_anonymous_bytes": before and before[0]}
            | rounds.run()
            | facts_of(session, options)
        )


def facts_of(session: Session, options: BenchOptions) -> dict[str, Any]:
    """Runtime, device, and the bytes of a decode step."""
    described, config = session.describe(), session.config
    name = described.runtime
    memory = session.device_memory()
    number_bits = STORED_BITS[session.signature.input(past_names(0)[0]).dtype]
    columns = config.prefix_length + options.context + options.new_tokens // 2
    values = 2 * config.num_layers * options.batch * columns * config.kv_heads * config.head_dim
    return {
        "runtime": name if name in AMONG_PACKAGES else f"{name} {described.version}", "dialect": described.dialect,
        "dtype": described.dtype, "device": described.device,
        "step_weight_bytes": session.weight_traffic(options.batch), "step_cache_bytes": values * number_bits // 8,
    } | ({} if memory is None else {"device_memory_bytes": memory})  # fmt: skip


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
        _tell(ROUND)
        prefills, firsts, rates = [], [], []
        steps: list[float] = []
        for _ in range(options.rounds):
            prefill, first = self._prefill(options.prompt_tokens)
            prefills.append(options.batch * options.prompt_tokens / prefill)
            firsts.append(first)
            taken = self._decode(options.new_tokens)
            rates.append(options.batch * len(taken) / sum(taken))
            steps += taken
            _tell(ROUND)
        return {
            "prefill_tokens_s": statistics.median(prefills),
            "first_token_s": statistics.median(firsts),
            "decode_tokens_s": statistics.median(rates),
            **{f"step_p{percent}_ms": 1000 * percentile(steps, percent) for percent in (50, 90, 99)},
        }

    def _prompts(self, tokens: int) -> list[Prompt]:
        config = self._session.config
        first = min(FIRST_PLAIN_ID, config.vocab_size - 1)
        rows = self._random.integers(first, config.vocab_size, (self._options.batch, tokens)).tolist()
        # A prefix family's context and its start-of-piece token; which ids they are changes no timing.
        context = tokens - 1 if config.prefix_mask else 0
        return [Prompt(ids=tuple(row), context_length=context) for row in rows]

    def _prefill(self, tokens: int) -> tuple[float, float]:
        """Seconds to the logits, and to the first token chosen from them."""
        feeds = self._session.feeds(self._prompts(tokens))
        started = time.perf_counter()
        logits = self._session.prefill(feeds)
        read = time.perf_counter() - started
        _choose(logits)
        taken = time.perf_counter() - started
        require_finite(self._session, logits[:, -1], 1)
        return read, taken

    def _decode(self, steps: int) -> list[float]:
        """Seconds of each greedy step: feeding, running, choosing, by whomever the session leaves it to."""
        prompts = self._prompts(self._options.context)
        if self._session.chooses_tokens:
            written = generate_steps(self._session, prompts, stopping=Stopping(max_new_tokens=steps + 1))
            # The first follows the prompt.
            ends = [time.perf_counter() for _ in written]
            return [end - start for start, end in pairwise(ends)]
        feeds = self._session.feeds(prompts)
        logits = self._session.prefill(feeds)
        require_finite(self._session, logits[:, -1], 1)
        chosen = _choose(logits)
        last_position = self._session.last_position(feeds)
        taken = []
        for step in range(2, steps + 2):
            started = time.perf_counter()
            feeds = feeds.next_step(chosen, last_position)
            logits = self._session.decode(feeds)
            chosen = _choose(logits)
            taken.append(time.perf_counter() - started)
            require_finite(self._session, logits[:, -1], step)
        return taken


def _tell(what: str) -> None:
    sys.stdout.write(f"\n{TOLD}{what}\n")
    sys.stdout.flush()


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
