"""The machine itself: what every other result means nothing without."""

from __future__ import annotations

from dataclasses import asdict

from record import PACKAGES, Facts, NotAvailableError, Recorder


def machine(recorder: Recorder) -> None:
    """GPU, driver, versions, what ``doctor`` finds, and how fast the GPU reads memory."""
    recorder.step("this machine", this_machine)
    recorder.step("doctor", doctor)
    recorder.step("memory bandwidth", lambda: bandwidth(recorder.kit.device))


def this_machine() -> Facts:
    from glm_export.machine import facts, gpu

    return {"machine": asdict(facts.this_machine(PACKAGES)), "gpus": [asdict(one) for one in gpu.gpus()]}


def doctor() -> Facts:
    """As ``glm-export doctor --json`` prints it."""
    from glm_export.deployment.doctor import diagnose

    return {"doctor": diagnose([]).to_json()}


def bandwidth(device: str) -> Facts:
    """The best of several reads of a buffer many times any cache: the roofline of decoding."""
    import torch

    from glm_export.machine.memory import read_bandwidth
    from glm_export.sessions.onnxruntime.runtime import usable_threads

    found = read_bandwidth(usable_threads(), device)
    if found is None:
        raise NotAvailableError(f"PyTorch {torch.__version__} cannot reach the GPU")
    return {"bandwidth_bytes_s": found, "found": f"{found / 1e9:.0f} GB/s", "torch": torch.__version__}
