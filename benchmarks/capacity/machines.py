"""What an engine may run on: steps that were measured, or follow from a data sheet by a formula that is said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steps import Steps, read_steps

from glm_export.serving.scheduler import SchedulerOptions

PROMPTS = [0, 16, 64, 128, 256, 512, 1024, 2048]


@dataclass(frozen=True, kw_only=True)
class Device:
    """A graphics processor by its data sheet. ``bandwidth``: bytes a second. ``operations``: of INT8 products a second,
    dense. ``memory``: bytes. ``share``: of both that a decoder is taken to reach; ``launch_s``: of a step, whatever is
    in it. ``price``: an hour of a machine with one, in US dollars; all three are assumed.
    """

    name: str
    bandwidth: float
    operations: float
    memory: float
    price: float
    share: float = 0.6
    launch_s: float = 2e-3


# NVIDIA's data sheets: L4 (300 GB/s, 242 TOPS dense INT8, 24 GB), A10 (600 GB/s, 250 TOPS, 24 GB), H100 SXM (3.35 TB/s,
# 1979 TOPS, 80 GB).
DEVICES = {
    "L4": Device(name="L4", bandwidth=300e9, operations=242e12, memory=24e9, price=0.8),
    "A10": Device(name="A10", bandwidth=600e9, operations=250e12, memory=24e9, price=1.0),
    "H100": Device(name="H100", bandwidth=3.35e12, operations=1979e12, memory=80e9, price=4.0),
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model's. ``parameters``: one byte each. ``column``: bytes of keys and values of a token."""

    name: str
    parameters: float
    column: float


# 28 layers, 2 key-value heads of 128, float16.
CHATGLM3 = Sizes(name="ChatGLM3-6B, INT8", parameters=6.24e9, column=28 * 2 * 2 * 128 * 2)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A replica: its steps, what it keeps of conversations in tokens, its price an hour, and how that is known."""

    name: str
    steps: Steps
    keep_tokens: int
    price: float
    known: str


def calculated(device: Device, sizes: Sizes, *, rows: int, context: int) -> Machine:
    """A step reads every weight once and its rows' keys and values, and multiplies each token with every weight.

    It takes a launch and the longer of ``(P + rows * context * c) / bandwidth`` and ``2 * P * tokens / operations``.

    Args:
        device: which.
        sizes: P and c.
        rows: at once.
        context: tokens a row has on average.
    """
    some = sorted({0, 1, 2, 4, 8, rows // 4, rows // 2, rows})

    def step_s(decoding: int, prompt: int) -> float:
        if not decoding + prompt:
            return 0.0
        moved = sizes.parameters + decoding * context * sizes.column
        work = 2 * sizes.parameters * (decoding + prompt)
        return device.launch_s + max(moved / device.bandwidth, work / device.operations) / device.share

    options = SchedulerOptions(max_rows=rows, chunk_tokens=512, step_tokens=rows + 1024)
    steps = Steps(
        rows=some,
        prompt_tokens=PROMPTS,
        seconds=[[step_s(decoding, prompt) for prompt in PROMPTS] for decoding in some],
        options={"max_rows": rows, "chunk_tokens": 512, "step_tokens": options.step_tokens},
        said=f"{sizes.name} on {device.name}, calculated",
    )
    free = device.memory * 0.9 - sizes.parameters - rows * context * sizes.column
    return Machine(
        name=f"{device.name}, {sizes.name}",
        steps=steps,
        keep_tokens=int(free / sizes.column),
        price=device.price,
        known="calculated",
    )


def measured(path: Path, *, name: str, column: float, keep_bytes: float, price: float) -> Machine:
    """What `steps.py` measured.

    Args:
        path: of its file.
        name: of the machine and the model.
        column: bytes of keys and values of a token.
        keep_bytes: of memory for conversations.
        price: an hour.
    """
    return Machine(
        name=name, steps=read_steps(path), keep_tokens=int(keep_bytes / column), price=price, known="steps measured"
    )
