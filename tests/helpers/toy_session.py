"""A model whose answer says exactly what it saw, over the real caches of every runtime and without any of them.

Its keys are token ids, its values places; an answer is a sum over what a query sees, which a list of ids predicts. So a
row that lost, kept or moved one token too many, or saw a neighbour's, answers wrongly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from glm_export import families
from glm_export.artifacts.initial_cache import InitialCache
from glm_export.inputs.call_layout import CallLayout
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.sessions.kv_cache import KvCache
from glm_export.sessions.onnxruntime.cache import Growing, InPlace, OrtCache, ort_cache
from glm_export.sessions.session import Logits, Session, SessionDescription, Tensors
from glm_export.sessions.tensorrt.cache import EngineCache, StaticEngineCache, engine_cache
from glm_export.sessions.torch import TorchCache
from glm_export.spec.batch_invariance import BatchInvariance
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import (
    ATTENTION_MASK,
    INPUT_IDS,
    POSITION_IDS,
    WRITE_INDICES,
    Cache,
    Signature,
    decoder_signature,
    past_names,
)
from tests.helpers.engine_stand_in import HostDevice
from tests.helpers.tiny import tiny_values

Array = NDArray[Any]
CAPACITY = 20
KINDS = {
    "torch": ("chatglm2", Cache.GROWING), "torch, prefix": ("glm_infilling", Cache.GROWING),
    "growing": ("chatglm2", Cache.GROWING), "growing, prefix": ("glm_infilling", Cache.GROWING),
    "shared": ("chatglm2", Cache.SHARED), "shared, prefix": ("glm_infilling", Cache.SHARED),
    "static": ("chatglm2", Cache.STATIC), "static, prefix": ("glm_infilling", Cache.STATIC),
    "engine, growing": ("chatglm2", Cache.GROWING),
    "engine, static": ("chatglm2", Cache.STATIC), "engine, static, prefix": ("glm_infilling", Cache.STATIC),
}  # fmt: skip
MODULUS = 1_000_003


def answer(seen: Sequence[tuple[int, int, int]]) -> int:
    """Of tokens and their two places, in any order."""
    return sum((token + 1) * (97 * place + 7 * within + 3) for token, place, within in seen) % MODULUS


BEGINNING = ((251, 0, 0), (252, 1, 0))
"""An initial cache: what stands before every row, with places of its own."""


def expected(prompt: Prompt, ids: Sequence[int], *, prefix: bool, begun: Sequence[tuple[int, int, int]] = ()) -> int:
    """What is answered behind the last of ``ids``, which begin with the prompt's context.

    ``begun``: an initial cache; only where families are causal it takes the first places.
    """
    context = prompt.context_length
    if not prefix:
        return answer([*begun, *((token, place, 0) for place, token in enumerate(ids, len(begun)))])
    inside = [*begun, *((token, place, 0) for place, token in enumerate(ids[:context]))]
    return answer(inside + [(token, prompt.mask_position, 1 + n) for n, token in enumerate(ids[context:])])


class Memory(ABC):
    """A cache's buffers as a program reads and writes them, ``[B, K, C, D]`` each."""

    @abstractmethod
    def read(self, cache: Any, past: int, new: int) -> list[Array]:
        """What lies there before a call."""

    @abstractmethod
    def write(self, cache: Any, presents: list[Array]) -> None:
        """What a call puts out."""

    def lasting(self, cache: Any) -> list[Any]:
        """Buffers a captured step would write into; none, if they are new at every call."""
        return []


class TorchMemory(Memory):
    def read(self, cache: TorchCache, past: int, new: int) -> list[Array]:
        return [tensor.numpy() for pair in cache.past() for tensor in pair]

    def write(self, cache: TorchCache, presents: list[Array]) -> None:
        tensors = [torch.from_numpy(array) for array in presents]
        cache.take(list(zip(tensors[::2], tensors[1::2], strict=True)))


class OrtMemory(Memory):
    def read(self, cache: OrtCache, past: int, new: int) -> list[Array]:
        return [value.numpy() for value in cache._values]

    def write(self, cache: OrtCache, presents: list[Array]) -> None:
        if isinstance(cache, Growing):
            cache.take([onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in presents])
        else:
            for value, array in zip(cache._values, presents, strict=True):
                value.update_inplace(array)

    def lasting(self, cache: OrtCache) -> list[Any]:
        return list(cache._values) if isinstance(cache, InPlace) else []


class EngineMemory(Memory):
    def read(self, cache: EngineCache, past: int, new: int) -> list[Array]:
        self._pairs = cache.pairs(past, new)
        return [pair.past.numpy().copy() for pair in self._pairs]

    def write(self, cache: EngineCache, presents: list[Array]) -> None:
        for pair, array in zip(self._pairs, presents, strict=True):
            pair.present.copy_(torch.from_numpy(array))
        cache.take()

    def lasting(self, cache: EngineCache) -> list[Any]:
        return [pair.past for pair in cache.pairs(0, 1)] if isinstance(cache, StaticEngineCache) else []


class ToySession(Session):
    """``moved`` counts how often the cache said that its buffers move. ``begun``: every row begins with this."""

    def __init__(self, kind: str, begun: Sequence[tuple[int, int, int]] = ()) -> None:
        family, cache = KINDS[kind]
        config = families.read_config(tiny_values(family))
        super().__init__(Path(), replace(config, prefix_length=len(begun)))
        self.initial_cache = _beginning(begun, self.config) if begun else None
        self.kind, self.moved = kind, 0
        self.signature: Signature = decoder_signature(
            self.config, dtype="float32", logits="all", cache=cache, max_length=CAPACITY
        )
        self._layout = CallLayout(signature=self.signature)
        self._memory: Memory = TorchMemory() if "torch" in kind else EngineMemory() if "engine" in kind else OrtMemory()
        self._device = HostDevice()
        self.cache = self.new_cache()
        self._known: tuple[list[Any], int] = ([], 0)

    @property
    def capacity(self) -> int | None:
        return CAPACITY if self.signature.cache is Cache.STATIC else None

    def new_cache(self) -> KvCache[Any]:
        if "torch" in self.kind:
            return TorchCache(self.signature, torch.device("cpu"), self.initial_cache)
        if "engine" in self.kind:
            return engine_cache(self.signature, self._device, CAPACITY, self._moving, self.initial_cache)
        return ort_cache(self.signature, "cpu", CAPACITY, self._moving, self.initial_cache)

    def _moving(self) -> None:
        self.moved += 1

    def feeds(self, prompts: Sequence[Prompt]) -> Feeds:
        return prefill_feeds(prompts, self.config, own_lengths=self.signature.own_lengths)

    def _prefill(self, feeds: Feeds) -> Logits:
        self.cache.start(feeds.batch, feeds.columns)
        return self._decode(feeds)

    def _decode(self, feeds: Feeds) -> Logits:
        self.cache.require(feeds)
        self.cache.make_room(feeds.columns)
        self._require_announced()
        given, new = self._layout.inputs_without_cache(feeds), feeds.input_ids.shape[1]
        buffers = self._memory.read(self.cache, feeds.columns - new, new)
        columns_BS = self._columns(given, buffers[0].shape[2])
        if self.signature.cache is Cache.GROWING:
            buffers = [np.pad(buffer, ((0, 0), (0, 0), (0, new), (0, 0))) for buffer in buffers]
        places_B2S = self._places(given, columns_BS)
        for index, buffer in enumerate(buffers):
            layer, is_value = divmod(index, 2)
            written = 300 * places_B2S[:, 0] + places_B2S[:, 1] if is_value else given[INPUT_IDS]
            for row, columns in enumerate(columns_BS):
                inside = columns < buffer.shape[2]
                buffer[row, :, columns[inside]] = (written + 100_000 * layer)[row, inside, None, None]
        self._memory.write(self.cache, buffers)
        self._known = (self._memory.lasting(self.cache), self.moved)
        self.cache.wrote(feeds)
        return self._answers(given, columns_BS, buffers)

    def _require_announced(self) -> None:
        """A captured step would still write where the buffers were."""
        before, moved = self._known
        after = self._memory.lasting(self.cache)
        stayed = len(before) == len(after) and all(one is other for one, other in zip(before, after, strict=True))
        assert stayed or not before or self.moved > moved, "buffers moved and nobody was told"

    def _columns(self, given: Tensors, width: int) -> Array:
        """Where the new tokens go, ``[B, S]``."""
        rows, new = given[INPUT_IDS].shape
        if self.signature.cache is Cache.GROWING:
            return np.broadcast_to(width + np.arange(new), (rows, new))
        if WRITE_INDICES in given:
            return given[WRITE_INDICES][:, None] + np.arange(new)
        if POSITION_IDS in given:
            return given[POSITION_IDS]
        # GroupQueryAttention counts: one token goes behind each row's last, several behind what all have.
        lengths = given[ATTENTION_MASK].sum(axis=1)
        starts = lengths - 1 if new == 1 else np.full(rows, lengths.max() - new)
        return starts[:, None] + np.arange(new)

    def _places(self, given: Tensors, columns_BS: Array) -> Array:
        """Two places of each new token, ``[B, 2, S]``."""
        places = given.get(POSITION_IDS, columns_BS)
        return places if places.ndim == 3 else np.stack([places, np.zeros_like(places)], axis=1)

    def _answers(self, given: Tensors, columns_BS: Array, buffers: list[Array]) -> Logits:
        rows, new = columns_BS.shape
        answers = np.zeros((rows, new, 2), np.float32)
        for layer in range(len(buffers) // 2):
            tokens, places = (buffers[2 * layer + part][:, 0, :, 0] - 100_000 * layer for part in (0, 1))
            for row, query in np.ndindex(rows, new):
                seen = self._sees(given, row, query, int(columns_BS[row, query]), tokens.shape[1])
                what = zip(tokens[row, seen].astype(int), places[row, seen].astype(int), strict=True)
                found = answer([(int(token), *divmod(int(place), 300)) for token, place in what])
                assert layer == 0 or answers[row, query, 0] == found
                answers[row, query] = found, seen.sum()
        return answers

    def _sees(self, given: Tensors, row: int, query: int, column: int, width: int) -> Array:
        mask = given.get(ATTENTION_MASK)
        if mask is not None and mask.ndim == 4:
            # A mask speaks of no more columns than are in use.
            return np.pad(np.asarray(mask[row, 0, query], bool), (0, width - mask.shape[-1]))
        causal = np.arange(width) <= column
        if mask is not None and self.signature.cache is Cache.GROWING:
            causal &= mask[row].astype(bool)
        return causal

    def describe(self) -> SessionDescription:
        raise NotImplementedError

    @property
    def batch_invariance(self) -> BatchInvariance:
        return BatchInvariance.EXACT

    def weight_traffic(self, rows: int) -> int:
        return 0

    def _run(self, tensors: Tensors) -> Tensors:
        raise NotImplementedError

    def _close(self) -> None:
        self.cache.clear()


def _beginning(begun: Sequence[tuple[int, int, int]], config: GlmConfig) -> InitialCache:
    """As the toy writes tokens: keys are ids, values places."""
    written = ([token for token, _, _ in begun], [300 * place + within for _, place, within in begun])
    shape = (1, config.kv_heads, len(begun), config.head_dim)
    arrays = {
        name: np.broadcast_to(np.array(values, np.float32)[:, None] + 100_000 * layer, shape).copy()
        for layer in range(config.num_layers)
        for name, values in zip(past_names(layer), written, strict=True)
    }
    return InitialCache(arrays=arrays)
