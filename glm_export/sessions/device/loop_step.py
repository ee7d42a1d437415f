"""One decode step, to be launched again and again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from glm_export.sessions.device.device import Device, Launch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopStep:
    """A decode step bound to its buffers.

    ``inputs``: by name, all that is not cache. ``logits`` ``[B, 1, V]``. ``launch``: puts the step on the device's
    stream.
    """

    device: Device
    inputs: dict[str, Tensor]
    logits: Tensor
    launch: Launch
