"""Speeds among results, and what they are over each other: only where they were taken on one device.

A speed is a dict: ``side`` (ours or peer), ``runtime``, ``form``, ``batch``, and the figures of ``glm-export bench``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from record import Facts

OURS, PEER = "ours", "peer"
EAGER, COMPILED = "transformers eager", "transformers compiled"
ONNXRUNTIME = "ONNX Runtime"
FIGURES = (
    "decode_tokens_s", "first_token_s", "prefill_tokens_s", "step_p50_ms", "floor_ms", "share_of_floor",
    "bandwidth_bytes_s", "load_s", "device_memory_bytes",
)  # fmt: skip


def speed(side: str, runtime: str, form: str, batch: int, figures: Facts) -> Facts:
    """One speed; figures of other kinds are left out."""
    kept = {name: figures[name] for name in FIGURES if figures.get(name) is not None}
    return {"side": side, "runtime": runtime, "form": form, "batch": batch, **kept}


def speeds(results: Sequence[Facts]) -> Iterator[Facts]:
    """Of all results, each with the device and shape it was taken on."""
    for result in results:
        for step in result["steps"]:
            if "speed" in step:
                yield step["speed"] | {"device": result["device"], "shape": result["shape"]}


def peer_speed(results: Sequence[Facts], runtime: str, ours: Facts) -> float | None:
    """A peer's decoding speed, of as many rows, on the same device and shape; None where it was not taken."""
    alike = ("batch", "device", "shape")
    found = [
        other["decode_tokens_s"]
        for other in speeds(results)
        if other["side"] == PEER and other["runtime"] == runtime and all(other[key] == ours[key] for key in alike)
    ]
    return max(found, default=None)


def times(results: Sequence[Facts], runtime: str, ours: Facts) -> float | None:
    """Our decoding speed over a peer's."""
    theirs = peer_speed(results, runtime, ours)
    return None if theirs is None else float(ours["decode_tokens_s"] / theirs)
