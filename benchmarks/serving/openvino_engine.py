"""OpenVINO GenAI's continuous batching, asked in its own process: no server and no client beside it, which favours it.

Runs in the environment that `benchmarks/peers/openvino_genai.py install` makes, on a model it converts:

    DIR/environments/openvino_genai/bin/python benchmarks/serving/openvino_engine.py MODEL --streams 8 --seconds 60
    DIR/environments/openvino_genai/bin/python benchmarks/serving/openvino_engine.py MODEL --streams 8 --together
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import openvino
import openvino_genai
from traffic import Seen, Traffic

PROMPT_TOKENS, NEW_TOKENS = 128, 64


class Engine:
    """The pipeline, and the requests under way."""

    def __init__(self, model: str, threads: int, precision: str | None, kv_cache: str | None) -> None:
        options = openvino_genai.SchedulerConfig()
        options.max_num_seqs, options.cache_size, options.enable_prefix_caching = 16, 4, True
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
        if precision:
            settings["INFERENCE_PRECISION_HINT"] = precision
        if kv_cache:
            settings["KV_CACHE_PRECISION"] = kv_cache
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(model, options, "CPU", settings)
        self.count = 0

    def ask(self, prompt: list[int], answer: int, temperature: float) -> Any:
        """Its handle."""
        config = openvino_genai.GenerationConfig(max_new_tokens=answer, ignore_eos=True, do_sample=temperature > 0)
        if temperature > 0:
            config.temperature = temperature
        self.count += 1
        return self.pipeline.add_request(self.count, openvino.Tensor(np.array([prompt], np.int64)), config)


def streamed(engine: Engine, traffic: Traffic, streams: int, seconds: float) -> dict[str, float]:
    """The closed loop of ``load.py``: each stream asks again when it is answered."""
    seen = Seen(seconds=seconds)
    asked = [traffic.requests(seed) for seed in range(streams)]

    def ask(stream: int) -> list[Any]:
        now = time.perf_counter()
        prompt, answer = next(asked[stream])
        return [engine.ask(prompt, answer, traffic.temperature), now, 0]

    end = time.perf_counter() + seconds
    rows = [ask(stream) for stream in range(streams)]
    while (now := time.perf_counter()) < end:
        engine.pipeline.step()
        now = time.perf_counter()
        for stream, (handle, last, read) in enumerate(rows):
            if handle.can_read():
                (told,) = handle.read().values()
                new = len(told.generated_ids)
                times = seen.first if not read else seen.between
                times += [(now - last) / new] * new
                seen.tokens += new
                rows[stream][1:] = [now, read + new]
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                seen.answers += 1
                rows[stream] = ask(stream)
    return seen.to_json()


def together(engine: Engine, rows: int, prompt_tokens: int) -> dict[str, float]:
    """Tokens a second of rows that decode behind prompts of one length, from when all of them have their first."""
    draw = np.random.default_rng(0)
    for _ in range(2):
        handles = [engine.ask(draw.integers(300, 2000, prompt_tokens).tolist(), NEW_TOKENS, 0.0) for _ in range(rows)]
        written, times = [0] * rows, []
        while engine.pipeline.has_non_finished_requests():
            engine.pipeline.step()
            for row, handle in enumerate(handles):
                if handle.can_read():
                    (told,) = handle.read().values()
                    written[row] += len(told.generated_ids)
            if min(written):
                times.append((time.perf_counter(), sum(written)))
    (began, before), (ended, after) = times[0], times[-1]
    return {"tokens_s": (after - before) / (ended - began)}


def main() -> None:
    """Print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", help="instead of OpenVINO's own choice for the machine")
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS, help="of each row, with --together")
    parser.add_argument("--kv-cache", help="what keys and values are kept in, instead of OpenVINO's own choice")
    asked = parser.parse_args()
    engine = Engine(asked.model, asked.threads, asked.precision, asked.kv_cache)
    if not asked.together:
        streamed(engine, Traffic(), asked.streams, min(5.0, asked.seconds))
    if asked.together:
        told = together(engine, asked.streams, asked.prompt_tokens)
    else:
        told = streamed(engine, Traffic(), asked.streams, asked.seconds)
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main()
