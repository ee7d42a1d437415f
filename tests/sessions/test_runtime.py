"""Threads of ONNX Runtime: one a core this process may use, both of its hyperthreads where there are few."""

from __future__ import annotations

import os

import pytest

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
