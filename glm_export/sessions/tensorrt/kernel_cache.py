"""Kernels that TensorRT-RTX compiled for this machine's GPU when an engine was first run, kept for the next time."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from glm_export.artifacts.engine import KERNELS
from glm_export.engines.vendor import TensorRT

RUNTIME_CACHE = "IRuntimeConfig.create_runtime_cache"


class KernelCache:
    """The file ``kernels.cache`` in an engine's folder. One of another GPU, driver or version is passed over."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / KERNELS
        self._cache: Any = None

    @classmethod
    def of(cls, tensorrt: TensorRT, folder: Path) -> KernelCache | None:
        """For an engine's folder; None where the version compiles nothing when it runs."""
        return cls(folder) if tensorrt.rtx and tensorrt.find(RUNTIME_CACHE) is not None else None

    def runtime_config(self, engine: Any, strategy: Any, graphs: Any = None) -> Any:
        """What a context is made with.

        Args:
            engine: TensorRT's.
            strategy: who manages the context's memory.
            graphs: whether the runtime captures CUDA graphs by itself; None leaves it to the runtime.
        """
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if graphs is not None:
            config.cuda_graph_strategy = graphs
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._path.is_file():
                self._cache.deserialize(self._path.read_bytes())
        config.set_runtime_cache(self._cache)
        return config

    def save(self) -> None:
        """Keep what was compiled; a folder that cannot be written is left as it is."""
        if self._cache is None:
            return
        partial = self._path.with_suffix(".partial")
        try:
            partial.write_bytes(memoryview(self._cache.serialize()))
            partial.replace(self._path)
        except OSError as error:
            # A full or read-only disk costs the next start its compiling, and this one nothing.
            logging.getLogger(__name__).warning("compiled kernels are not kept: %s", error)
            with suppress(OSError):
                partial.unlink(missing_ok=True)
