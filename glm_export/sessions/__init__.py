"""Running a model: one protocol, one file per runtime.

A session keeps one batch's cache: ``prefill`` starts anew, ``decode`` goes on. ``run`` is a single call with the
cache handed in and out, for proof.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from glm_export.config import GlmConfig
from glm_export.feeds import Feeds
from glm_export.tokenizers import Tokenizer, load_tokenizer

Logits = NDArray[np.float32]
Tensors = dict[str, NDArray[np.generic]]


class Session(ABC):
    """A model ready to run. Use it in a ``with`` block, or call :meth:`close`."""

    def __init__(self, folder: Path, config: GlmConfig) -> None:
        self.folder = folder
        self.config = config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the model."""
        return load_tokenizer(self.folder, self.config)

    @abstractmethod
    def prefill(self, feeds: Feeds) -> Logits:
        """Forget the cache and read a prompt.

        Returns:
            float32 ``[B, S, V]``, or ``[B, 1, V]`` where the program computes only the last row.
        """

    @abstractmethod
    def decode(self, feeds: Feeds) -> Logits:
        """Read on from the cache: one token a row, or a chunk. Returns as :meth:`prefill`."""

    @abstractmethod
    def run(self, tensors: Tensors) -> Tensors:
        """One call by the names of the program's signature, cache included; keeps no state."""

    @abstractmethod
    def close(self) -> None:
        """Free the model and its cache; the session cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
