"""The GPU as PyTorch has it: refused in one line where there is none, or another one than engines run on."""

from __future__ import annotations

import pytest
import torch

from glm_export.errors import EnvironmentMissingError
from glm_export.sessions.device.cuda import CudaDevice


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines whose PyTorch reaches no GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    with pytest.raises(EnvironmentMissingError, match=r"cannot reach a GPU.*install PyTorch with CUDA"):
        CudaDevice()


def test_another_device_than_the_engines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT would load the engine onto PyTorch's current device, and it was held to the first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    with pytest.raises(EnvironmentMissingError, match=r"cuda:2, and engines run on cuda:0.*CUDA_VISIBLE_DEVICES=2"):
        CudaDevice()
