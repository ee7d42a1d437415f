"""A stream's work captured as a CUDA graph, through the driver itself.

PyTorch's own capture brings its allocator along, which stays in capture for ever where one fails (pytorch#180395). A
runtime that was given all its memory beforehand needs none of it. The driver is spoken to by NVIDIA's ``cuda-bindings``
where they are installed, else through ``libcuda`` by ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from glm_export.errors import EnvironmentMissingError

LIBRARY = "libcuda.so.1"
THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile neither fails nor is captured."""
Handle = int


class DriverError(RuntimeError):
    """A call that the driver refused."""


class Driver(Protocol):
    """The calls of the CUDA driver that make graphs. All raise :class:`DriverError`."""

    def begin(self, stream: Handle) -> None:
        """cuStreamBeginCapture, thread-local."""

    def end(self, stream: Handle) -> Handle:
        """cuStreamEndCapture; the graph, 0 where the capture was invalidated."""

    def instantiate(self, graph: Handle) -> Handle:
        """CuGraphInstantiateWithFlags."""

    def launch(self, executable: Handle, stream: Handle) -> None:
        """CuGraphLaunch."""

    def destroy_graph(self, graph: Handle) -> None:
        """CuGraphDestroy."""

    def destroy(self, executable: Handle) -> None:
        """CuGraphExecDestroy."""


class _BoundDriver:
    """Through ``cuda.bindings.driver``: every call returns its error first."""

    def __init__(self, module: Any = None) -> None:
        self._cu = module if module is not None else import_module("cuda.bindings.driver")
        self._mode = self._cu.CUstreamCaptureMode(THREAD_LOCAL)

    def begin(self, stream: Handle) -> None:
        self._call("cuStreamBeginCapture", self._cu.CUstream(stream), self._mode)

    def end(self, stream: Handle) -> Handle:
        return int(self._call("cuStreamEndCapture", self._cu.CUstream(stream)))

    def instantiate(self, graph: Handle) -> Handle:
        return int(self._call("cuGraphInstantiate", self._cu.CUgraph(graph), 0))

    def launch(self, executable: Handle, stream: Handle) -> None:
        self._call("cuGraphLaunch", self._cu.CUgraphExec(executable), self._cu.CUstream(stream))

    def destroy_graph(self, graph: Handle) -> None:
        self._call("cuGraphDestroy", self._cu.CUgraph(graph))

    def destroy(self, executable: Handle) -> None:
        self._call("cuGraphExecDestroy", self._cu.CUgraphExec(executable))

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._cu, name)(*arguments)
        if int(error):
            raise DriverError(f"{name}: {getattr(error, 'name', int(error))}")
        return values[0] if values else None


class _LoadedDriver:
    """Through the driver's library."""

    def __init__(self, library: Any = None) -> None:
        self._cu = library if library is not None else ctypes.CDLL(LIBRARY)

    def begin(self, stream: Handle) -> None:
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(THREAD_LOCAL))

    def end(self, stream: Handle) -> Handle:
        graph = ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        return graph.value or 0

    def instantiate(self, graph: Handle) -> Handle:
        executable = ctypes.c_void_p()
        self._call(
            "cuGraphInstantiateWithFlags", ctypes.byref(executable), ctypes.c_void_p(graph), ctypes.c_ulonglong(0)
        )
        return executable.value or 0

    def launch(self, executable: Handle, stream: Handle) -> None:
        self._call("cuGraphLaunch", ctypes.c_void_p(executable), ctypes.c_void_p(stream))

    def destroy_graph(self, graph: Handle) -> None:
        self._call("cuGraphDestroy", ctypes.c_void_p(graph))

    def destroy(self, executable: Handle) -> None:
        self._call("cuGraphExecDestroy", ctypes.c_void_p(executable))

    def _call(self, name: str, *arguments: Any) -> None:
        error = int(getattr(self._cu, name)(*arguments))
        if error:
            raise DriverError(f"{name}: {self._name_of(error)}")

    def _name_of(self, error: int) -> str:
        text = ctypes.c_char_p()
        self._cu.cuGetErrorName(ctypes.c_int(error), ctypes.byref(text))
        return text.value.decode() if text.value else f"error {error}"


def driver() -> Driver:
    """The CUDA driver of this machine, by whichever way there is.

    Raises:
        EnvironmentMissingError: there is none.
    """
    if find_spec("cuda") is not None and find_spec("cuda.bindings") is not None:
        return _BoundDriver()
    try:
        return _LoadedDriver()
    except OSError as error:
        raise EnvironmentMissingError(
            f"a CUDA graph needs the NVIDIA driver, and {LIBRARY} cannot be loaded: {error}"
        ) from error


class StreamGraph:
    """A captured graph, ready to be launched. Its memory is freed with it."""

    def __init__(self, driver: Driver, stream: Handle, executable: Handle) -> None:
        self._driver, self._stream, self._executable = driver, stream, executable

    @classmethod
    def captured(cls, driver: Driver, stream: Handle, launch: Callable[[], None]) -> StreamGraph:
        """Capture what a call puts on a stream that is idle.

        Raises:
            EnvironmentMissingError: it cannot be captured; nothing of the attempt is left.
        """
        try:
            graph = cls._graph(driver, stream, launch)
            try:
                return cls(driver, stream, driver.instantiate(graph))
            finally:
                driver.destroy_graph(graph)
        except DriverError as error:
            raise EnvironmentMissingError(f"the work cannot be captured: {error}") from error

    @staticmethod
    def _graph(driver: Driver, stream: Handle, launch: Callable[[], None]) -> Handle:
        driver.begin(stream)
        try:
            launch()
        except BaseException:
            # Ended whatever happened: a stream left in capture takes no work any more.
            with suppress(DriverError):
                if graph := driver.end(stream):
                    driver.destroy_graph(graph)
            raise
        graph = driver.end(stream)
        if not graph:
            raise DriverError("cuStreamEndCapture: no graph came out of it")
        return graph

    def __call__(self) -> None:
        """Launch it.

        Raises:
            EnvironmentMissingError: the driver refused.
        """
        try:
            self._driver.launch(self._executable, self._stream)
        except DriverError as error:
            raise EnvironmentMissingError(f"a captured step cannot be launched: {error}") from error

    def __del__(self) -> None:
        executable, self._executable = getattr(self, "_executable", 0), 0
        if executable:
            self._driver.destroy(executable)
