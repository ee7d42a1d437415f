"""transformers on PyTorch with the same sizes, the same prompts, and one token chosen after the other.

Each figure is taken the way ``glm-export bench`` takes its own: prompts of 512 tokens, 64 steps behind 128, medians of
three rounds, random ids. Decoding is taken twice: each token read as it is chosen, and all at the end; the faster
counts.
"""

from __future__ import annotations

import inspect
import os
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from full_size_parts import BATCHES, NATIVE, full_checkpoint
from record import Facts, Kit, NotAvailableError, Recorder
from speeds import COMPILED, EAGER, PEER, speed

from glm_export.machine.memory import read_bandwidth
from glm_export.performance.measure import FIRST_PLAIN_ID
from glm_export.performance.report import BenchOptions
from glm_export.sessions.onnxruntime.runtime import usable_threads

ROUNDS = 3
USUAL = BenchOptions()
PROMPT, CONTEXT, NEW = USUAL.prompt_tokens, USUAL.context, USUAL.new_tokens
FORM = "float16"
Step = Callable[..., Any]


def eager(recorder: Recorder) -> None:
    """As transformers runs by itself, with a growing cache."""
    measure(recorder, EAGER)


def compiled(recorder: Recorder) -> None:
    """With a static cache and its forward pass compiled, decode steps as CUDA graphs."""
    require_compiler()
    measure(recorder, COMPILED)


def require_compiler() -> None:
    """See that PyTorch's compiler finds one for C.

    Raises:
        NotAvailableError: there is none.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NotAvailableError("torch.compile needs a C compiler, and none was found")


def measure(recorder: Recorder, name: str) -> None:
    """Every batch as a step."""
    transformers = required(recorder.kit)
    recorder.facts |= {"transformers": transformers.__version__}
    bandwidth = read_bandwidth(usable_threads(), recorder.kit.device)
    model = load(full_checkpoint(recorder.kit, NATIVE), recorder.kit)
    for batch in BATCHES:
        recorder.step(f"speed, batch {batch}", partial(measured, model, name, batch, bandwidth))


def required(kit: Kit) -> Any:
    """The package, with the class for these checkpoints.

    Raises:
        NotAvailableError: it is missing, too old, or PyTorch has no GPU.
    """
    import torch

    try:
        import transformers
        from transformers import GlmForCausalLM  # noqa: F401
    except ImportError as error:
        raise NotAvailableError(f"transformers with GlmForCausalLM is not installed: {error}") from error
    if not kit.rehearse and not torch.cuda.is_available():
        raise NotAvailableError(f"PyTorch {torch.__version__} cannot reach the GPU")
    return transformers


def load(checkpoint: Path, kit: Kit) -> Any:
    """The model in float16 on the device."""
    import torch
    from transformers import GlmForCausalLM

    try:
        model = GlmForCausalLM.from_pretrained(checkpoint, dtype=torch.float16)
    except TypeError:  # its name up to 4.55
        model = GlmForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float16)
    return model.eval().to(kit.device)


class Writer:
    """Reads prompts and writes greedily, a token a row at a time."""

    def __init__(self, model: Any, name: str, batch: int) -> None:
        import torch
        from transformers import StaticCache

        self._model, self._batch = model, batch
        self._static = None
        self._step: Step = model.forward
        self._positions = "cache_position" in inspect.signature(model.forward).parameters
        self._device = model.lm_head.weight.device
        self._random = torch.Generator().manual_seed(0)
        if name == COMPILED:
            # One cache for all calls: what is captured stays at its address.
            self._static = StaticCache(config=model.config, max_cache_len=max(PROMPT, CONTEXT + NEW) + 64)
            self._step = torch.compile(model.forward, mode="reduce-overhead", dynamic=False)

    def write(self, prompt_tokens: int, count: int, *, read_each: bool = True) -> list[float]:
        """Seconds from the start to each of ``count`` tokens; with ``read_each`` False only to the last, for all."""
        import torch
        from transformers import DynamicCache

        vocab_size = self._model.config.vocab_size
        ids = torch.randint(FIRST_PLAIN_ID, vocab_size, (self._batch, prompt_tokens), generator=self._random)
        if self._static is not None:
            self._static.reset()
        cache = self._static if self._static is not None else DynamicCache()
        following, done, times = ids.to(self._device), 0, []
        started = time.perf_counter()
        with torch.no_grad():
            for index in range(count):
                following, done = self._once(following, cache, done), done + following.shape[1]
                if read_each or index == count - 1:
                    following.tolist()
                times.append(time.perf_counter() - started)
        return times

    def _once(self, ids: Any, cache: Any, done: int) -> Any:
        import torch

        positions = torch.arange(done, done + ids.shape[1], device=self._device)
        given = {"cache_position": positions} if self._positions else {"position_ids": positions[None]}
        if self._static is not None:
            torch.compiler.cudagraph_mark_step_begin()
        # A prompt of another length would be compiled anew; those that are not timed run as they are.
        step = self._step if ids.shape[1] in (1, PROMPT) else self._model.forward
        logits = step(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **given).logits
        return logits[:, -1:].argmax(-1)


def measured(model: Any, name: str, batch: int, bandwidth: float | None) -> Facts:
    """The figures of one batch, after a warm-up of every shape."""
    writer = Writer(model, name, batch)
    # First a prompt that is not compiled: a static cache made outside the compiler has a fixed address, which CUDA
    # graphs need. Then compiled, recorded, launched.
    for _ in range(3):
        writer.write(CONTEXT, 4)
        writer.write(PROMPT, 1)
    first = statistics.median(writer.write(PROMPT, 1)[0] for _ in range(ROUNDS))
    rates = {read: statistics.median(rate(writer, batch, read) for _ in range(ROUNDS)) for read in (True, False)}
    best = max(rates.values())
    floor = None if bandwidth is None else step_bytes(model, batch) / bandwidth
    figures = {
        "decode_tokens_s": best, "first_token_s": first, "prefill_tokens_s": batch * PROMPT / first,
        "step_p50_ms": 1000 * batch / best, "bandwidth_bytes_s": bandwidth,
        "floor_ms": floor and 1000 * floor, "share_of_floor": floor and best * floor / batch,
    }  # fmt: skip
    return {"speed": speed(PEER, name, FORM, batch, figures), "tokens_s_reading_each": rates[True]}


def rate(writer: Writer, batch: int, read_each: bool) -> float:
    """Tokens a second behind the prompt."""
    if read_each:
        times = writer.write(CONTEXT, NEW + 1)
        return batch * NEW / (times[-1] - times[0])
    # Without reading, nothing says when the prompt was done: the difference of a long and a short answer does.
    short, long = (writer.write(CONTEXT, count, read_each=False)[-1] for count in (1, NEW + 1))
    return batch * NEW / (long - short)


def step_bytes(model: Any, batch: int) -> float:
    """What a decode step reads: every weight but the table tokens are looked up in, and the cache, halfway."""
    table = model.get_input_embeddings().weight
    head = model.lm_head.weight
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    weights -= table.numel() * table.element_size() if head is not table else 0
    config = model.config
    values = 2 * config.num_hidden_layers * batch * (CONTEXT + NEW // 2) * config.num_key_value_heads * config.head_dim
    return float(weights + values * table.element_size())
