"""A stream's capture is ended and its graph destroyed whatever happens; both ways to the driver make the same calls."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest

from glm_export.errors import EnvironmentMissingError
from glm_export.sessions.device.capture import Driver, StreamGraph, _BoundDriver, _LoadedDriver

STREAM, GRAPH, EXECUTABLE = 0x1000, 0x2000, 0x3000
CAPTURED = ["begin", "work", "end", "instantiate", "destroy graph"]
REFUSED = 901


class Record:
    """What was called, in order, and which call is refused."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refused, self.graph = "", GRAPH

    def take(self, name: str, *handles: tuple[int, int]) -> int:
        for found, expected in handles:
            assert found == expected, name
        self.calls.append(name)
        return REFUSED if name == self.refused else 0

    def work(self) -> None:
        self.take("work")


def loaded(record: Record) -> Driver:
    """The library by ctypes: functions of C, with its arguments by address."""
    pointer, out = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)

    class Library:
        pass

    library: Any = Library()

    def function(name: str, *kinds: Any) -> Callable[[Callable[..., int]], None]:
        return lambda body: setattr(library, name, ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(body))

    @function("cuStreamBeginCapture_v2", pointer, ctypes.c_int)
    def _begin(stream: int, mode: int) -> int:
        return record.take("begin", (stream, STREAM), (mode, 1))

    @function("cuStreamEndCapture", pointer, out)
    def _end(stream: int, graph: Any) -> int:
        graph[0] = record.graph
        return record.take("end", (stream, STREAM))

    @function("cuGraphInstantiateWithFlags", out, pointer, ctypes.c_ulonglong)
    def _instantiate(executable: Any, graph: int, flags: int) -> int:
        executable[0] = EXECUTABLE
        return record.take("instantiate", (graph, GRAPH), (flags, 0))

    @function("cuGraphLaunch", pointer, pointer)
    def _launch(executable: int, stream: int) -> int:
        return record.take("launch", (executable, EXECUTABLE), (stream, STREAM))

    @function("cuGraphDestroy", pointer)
    def _destroy_graph(graph: int) -> int:
        return record.take("destroy graph", (graph, GRAPH))

    @function("cuGraphExecDestroy", pointer)
    def _destroy(executable: int) -> int:
        return record.take("destroy", (executable, EXECUTABLE))

    @function("cuGetErrorName", ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
    def _name(error: int, text: Any) -> int:
        text[0] = b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" if error == REFUSED else None
        return 0

    return _LoadedDriver(library)


def bound(record: Record) -> Driver:
    """The package: handles are objects, and each call returns its error first."""

    class CUresult(IntEnum):
        CUDA_SUCCESS = 0
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = REFUSED

    class Module:
        CUstream = CUgraph = CUgraphExec = staticmethod(int)
        CUstreamCaptureMode = staticmethod(int)

        @staticmethod
        def cuStreamBeginCapture(stream: int, mode: int) -> tuple[CUresult]:  # noqa: N802
            return (CUresult(record.take("begin", (stream, STREAM), (mode, 1))),)

        @staticmethod
        def cuStreamEndCapture(stream: int) -> tuple[CUresult, int]:  # noqa: N802
            return CUresult(record.take("end", (stream, STREAM))), record.graph

        @staticmethod
        def cuGraphInstantiate(graph: int, flags: int) -> tuple[CUresult, int]:  # noqa: N802
            return CUresult(record.take("instantiate", (graph, GRAPH), (flags, 0))), EXECUTABLE

        @staticmethod
        def cuGraphLaunch(executable: int, stream: int) -> tuple[CUresult]:  # noqa: N802
            return (CUresult(record.take("launch", (executable, EXECUTABLE), (stream, STREAM))),)

        @staticmethod
        def cuGraphDestroy(graph: int) -> tuple[CUresult]:  # noqa: N802
            return (CUresult(record.take("destroy graph", (graph, GRAPH))),)

        @staticmethod
        def cuGraphExecDestroy(executable: int) -> tuple[CUresult]:  # noqa: N802
            return (CUresult(record.take("destroy", (executable, EXECUTABLE))),)

    return _BoundDriver(Module)


@pytest.fixture(params=[loaded, bound])
def way(request: pytest.FixtureRequest) -> tuple[Driver, Record]:
    record = Record()
    return request.param(record), record


def test_captured_launched_and_freed(way: tuple[Driver, Record]) -> None:
    driver, record = way
    graph = StreamGraph.captured(driver, STREAM, record.work)
    assert record.calls == CAPTURED
    graph()
    graph()
    del graph
    assert record.calls == [*CAPTURED, "launch", "launch", "destroy"]


@pytest.mark.parametrize("call", ["begin", "end", "instantiate"])
def test_what_the_driver_refuses_is_told_and_nothing_is_left(call: str, way: tuple[Driver, Record]) -> None:
    driver, record = way
    record.refused = call
    with pytest.raises(EnvironmentMissingError, match=r"cannot be captured: cu\w+: CUDA_ERROR_STREAM_CAPTURE_INVALID"):
        StreamGraph.captured(driver, STREAM, record.work)
    until = record.calls.index(call) + 1
    assert record.calls == CAPTURED[:until] + (["destroy graph"] if call == "instantiate" else [])


def test_a_capture_is_ended_when_its_work_fails(way: tuple[Driver, Record]) -> None:
    """Else the stream would stay in capture, and take no work any more."""
    driver, record = way

    def fails() -> None:
        record.work()
        raise EnvironmentMissingError("no")

    with pytest.raises(EnvironmentMissingError, match="no"):
        StreamGraph.captured(driver, STREAM, fails)
    assert record.calls == ["begin", "work", "end", "destroy graph"]


def test_an_invalidated_capture_has_no_graph(way: tuple[Driver, Record]) -> None:
    driver, record = way
    record.graph = 0
    with pytest.raises(EnvironmentMissingError, match="no graph came out of it"):
        StreamGraph.captured(driver, STREAM, record.work)
    assert record.calls == ["begin", "work", "end"]


def test_a_launch_that_is_refused_is_told(way: tuple[Driver, Record]) -> None:
    driver, record = way
    graph = StreamGraph.captured(driver, STREAM, record.work)
    record.refused = "launch"
    with pytest.raises(EnvironmentMissingError, match="cannot be launched: cuGraphLaunch"):
        graph()
