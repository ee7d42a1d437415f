"""ONNX Runtime here: which version serves CUDA, how many threads (one a core, both of it where there are few)."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest

from glm_export.errors import EnvironmentMissingError
from glm_export.sessions.logits import in_float32
from glm_export.sessions.onnxruntime import runtime


class Siblings:
    """Stands for the kernel's file of a processor: two neighbours share a core."""

    def __init__(self, path: str) -> None:
        self._processor = int(path.split("/cpu/cpu")[1].split("/")[0])

    def is_file(self) -> bool:
        return True

    def read_text(self, encoding: str) -> str:
        first = self._processor // 2 * 2
        return f"{first},{first + 1}"


class Unknown(Siblings):
    """A system that does not say who shares a core."""

    def is_file(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("processors", "files", "threads"),
    [
        (range(16), Siblings, 8),
        (range(8), Siblings, 4),
        (range(4), Siblings, 4),  # two cores
        ((0, 2, 4, 6, 8), Siblings, 5),  # a container with one thread of each core
        (range(2), Unknown, 2),
        (range(8), Unknown, 8),
    ],
)
def test_threads_are_those_of_the_cores_allowed(
    processors: range, files: type[Siblings], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(processors), raising=False)
    monkeypatch.setattr(runtime, "Path", files)
    assert runtime.usable_threads() == threads


@pytest.mark.parametrize("version", ["1.24.4", "1.30.0"])
def test_a_version_without_kernels_for_cuda_is_refused(version: str) -> None:
    with pytest.raises(EnvironmentMissingError, match=rf"{version} lacks kernels for CUDA, 1.31 and later have them"):
        runtime._require_kernels(version)


@pytest.mark.parametrize("version", ["1.31.1", "1.32.0", "2.0.0"])
def test_later_versions_are_taken(version: str) -> None:
    runtime._require_kernels(version)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("torch_is_loaded", [True, False])
def test_logits_are_widened_to_the_bit(
    dtype: type[np.floating[Any]], torch_is_loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch_is_loaded:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
    logits = np.array([[1.5, -np.inf, 6e-8, 65504, np.nan]], dtype)
    found = in_float32(logits)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, logits.astype(np.float32))
    assert np.shares_memory(found, logits) == (dtype is np.float32)
