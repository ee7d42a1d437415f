"""One call in the canonical program's layout, carried over to the layout of a program's own cache, and back.

Canonical: rows padded on the left, past and new tokens in columns one after another, ``[B, T]``.
Own lengths: each row's real tokens from column 0 on, what follows is free.
Shapes: B batch, S new tokens, P past columns, T = P + S, K key-value heads, D head size, L columns of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import ConfigError
from glm_export.inputs.feeds import Feeds, Ids
from glm_export.spec.signature import (
    ATTENTION_MASK,
    CACHE_LENGTH_AXIS,
    INPUT_IDS,
    LAST_TOKEN_IDS,
    LOGITS,
    POSITION_IDS,
    QUERY_LENGTHS,
    WRITE_INDICES,
    Cache,
    Signature,
    past_names,
    present_names,
)

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLengths:
    """Which canonical columns are real: ``past`` bool ``[B, P]`` and ``new`` bool ``[B, S]``."""

    past: NDArray[np.bool_]
    new: NDArray[np.bool_]

    @classmethod
    def of(cls, tensors: Tensors) -> OwnLengths:
        """Read them from a causal family's ``attention_mask`` ``[B, T]``."""
        real = tensors[ATTENTION_MASK].astype(bool)
        columns = real.shape[1] - tensors[INPUT_IDS].shape[1]
        return cls(past=real[:, :columns], new=real[:, columns:])

    @property
    def before(self) -> Ids:
        """Real past tokens of each row."""
        count: Ids = self.past.sum(axis=1)
        return count

    @property
    def all(self) -> NDArray[np.bool_]:
        """Real columns of past and new tokens, ``[B, T]``."""
        return np.concatenate([self.past, self.new], axis=1)


def _to_own_lengths(tensors: Tensors, signature: Signature) -> Tensors:
    """A causal family's canonical inputs as a program with own lengths takes them.

    Args:
        tensors: by canonical name, left padded.
        signature: of the program; a static cache gives L, a shared one takes T.
    """
    rows = OwnLengths.of(tensors)
    total = rows.before + rows.new.sum(axis=1)
    batch, queries = rows.new.shape
    ids = np.zeros((batch, queries), np.int64)
    for index, new in enumerate(rows.new):
        ids[index, : new.sum()] = tensors[INPUT_IDS][index, new]
    given: Tensors = {
        INPUT_IDS: ids,
        ATTENTION_MASK: (np.arange(total.max()) < total[:, None]).astype(np.int64),
        POSITION_IDS: rows.before[:, None] + np.arange(queries),
        LAST_TOKEN_IDS: np.maximum(rows.new.sum(axis=1) - 1, 0),
        QUERY_LENGTHS: rows.new.sum(axis=1).astype(np.int32),
    }
    for spec in signature.inputs:
        if spec.name in given:
            continue
        past = tensors[spec.name]
        fixed = spec.dims[CACHE_LENGTH_AXIS]
        length = fixed if isinstance(fixed, int) else rows.all.shape[1]
        cache = np.zeros((*past.shape[:2], length, past.shape[3]), past.dtype)
        for index, real in enumerate(rows.past):
            cache[index, :, : real.sum()] = past[index][:, real]
        given[spec.name] = cache
    return {spec.name: given[spec.name] for spec in signature.inputs}


def _own_lengths_to_canonical(outputs: Tensors, tensors: Tensors) -> Tensors:
    """Outputs of own lengths back in the columns of the canonical inputs; padding is 0."""
    rows = OwnLengths.of(tensors)
    result: Tensors = {}
    for name, output in outputs.items():
        real = rows.new if name == LOGITS else rows.all
        if name == LOGITS and output.shape[1] == 1:
            result[name] = output
            continue
        # Column axis 1 of logits, 2 of a cache.
        output_BTX = output if name == LOGITS else output.swapaxes(1, 2)
        back_BTX = np.zeros((real.shape[0], real.shape[1], *output_BTX.shape[2:]), output.dtype)
        for index, columns in enumerate(real):
            back_BTX[index, columns] = output_BTX[index, : columns.sum()]
        result[name] = back_BTX if name == LOGITS else back_BTX.swapaxes(1, 2)
    return result


def without_padding(outputs: Tensors, tensors: Tensors) -> Tensors:
    """Canonical outputs with 0 where there is padding, as :meth:`CallLayout.to_canonical` leaves it."""
    rows = OwnLengths.of(tensors)
    return {
        name: output
        if name == LOGITS and output.shape[1] == 1
        else np.where(rows.new[:, :, None] if name == LOGITS else rows.all[:, None, :, None], output, 0)
        for name, output in outputs.items()
    }


def run_rows_apart(run: Callable[[Tensors], Tensors], tensors: Tensors, signature: Signature) -> Tensors:
    """A causal family's canonical call one row at a time, each without its padding; padding of outputs is 0."""
    found = [_run_alone(run, tensors, row, signature) for row in range(len(tensors[INPUT_IDS]))]
    return {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}


def _run_alone(run: Callable[[Tensors], Tensors], tensors: Tensors, row: int, signature: Signature) -> Tensors:
    real = OwnLengths.of(tensors)
    past, padding = real.past.shape[1], int(real.new[row].argmax())
    alone = {name: array[row : row + 1] for name, array in tensors.items()}
    mask = alone[ATTENTION_MASK]
    alone |= {name: alone[name][:, padding:] for name in (INPUT_IDS, POSITION_IDS)}
    outputs = run(alone | {ATTENTION_MASK: np.concatenate([mask[:, :past], mask[:, past + padding :]], axis=1)})
    result = {
        name: np.insert(output, [past] * padding, 0, axis=CACHE_LENGTH_AXIS)
        for name, output in outputs.items()
        if name != LOGITS
    }
    missing = 0 if signature.last_logits_only else padding
    return {LOGITS: np.pad(outputs[LOGITS], ((0, 0), (missing, 0), (0, 0)))} | result


def _on_static_columns(named: Tensors, signature: Signature) -> Tensors:
    """Inputs of a prefix family with what a static cache wants besides: it is padded on the left all the same.

    The mask covers every column, and the program is told where to write.
    """
    mask = named[ATTENTION_MASK]
    batch, queries = named[INPUT_IDS].shape
    free = signature.static_length - mask.shape[-1]
    return named | {
        ATTENTION_MASK: np.pad(mask, ((0, 0), (0, 0), (0, 0), (0, free))),
        WRITE_INDICES: np.full(batch, mask.shape[-1] - queries, np.int64),
        LAST_TOKEN_IDS: np.full(batch, queries - 1, np.int64),
    }


def _to_static(tensors: Tensors, signature: Signature) -> Tensors:
    """A prefix family's canonical inputs over a static cache: the same columns, and free ones behind."""
    given = _on_static_columns(tensors, signature)
    for spec in signature.inputs:
        if spec.is_cache:
            past = tensors[spec.name]
            given[spec.name] = np.pad(past, ((0, 0), (0, 0), (0, signature.static_length - past.shape[2]), (0, 0)))
    return {spec.name: given[spec.name] for spec in signature.inputs}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLayout:
    """How a program of this signature is called, by callers who know the canonical layout and floats alone.

    ``kv_scales`` ``[L, 2]``: of key and value by layer, where the program keeps int8. ``fed``: names of the inputs that
    are no keys or values; every step asks for them.
    """

    signature: Signature
    kv_scales: NDArray[np.float32] | None = None
    fed: tuple[str, ...] = field(init=False)
    padded_columns: bool = field(init=False)
    """Whether a mask as wide as the cache is wanted, and where to write."""

    def __post_init__(self) -> None:
        signature = self.signature
        object.__setattr__(self, "fed", tuple(spec.name for spec in signature.inputs if not spec.is_cache))
        object.__setattr__(self, "padded_columns", signature.prefix_mask and signature.cache is Cache.STATIC)
        if self.signature.cache_is_integer and self.kv_scales is None:
            raise ConfigError("the program's cache keeps integers, and no scales were given; pass those of its ranges")

    @property
    def is_canonical(self) -> bool:
        """Whether the program takes the canonical call as it is."""
        return self.signature.cache is Cache.GROWING and not self.signature.cache_is_integer

    def to_program(self, tensors: Tensors) -> Tensors:
        """Canonical inputs as the program takes them."""
        tensors = self.quantize_past(tensors)
        if self.signature.cache is Cache.GROWING:
            return tensors
        return (
            _to_own_lengths(tensors, self.signature)
            if self.signature.own_lengths
            else _to_static(tensors, self.signature)
        )

    def to_canonical(self, outputs: Tensors, tensors: Tensors) -> Tensors:
        """The program's outputs in canonical columns; ``tensors`` are the canonical inputs."""
        outputs = self.dequantize_present(outputs)
        if self.signature.cache is Cache.GROWING:
            return outputs
        if self.signature.own_lengths:
            return _own_lengths_to_canonical(outputs, tensors)
        total = tensors[ATTENTION_MASK].shape[-1]
        return {name: output if name == LOGITS else output[:, :, :total] for name, output in outputs.items()}

    def inputs_without_cache(self, feeds: Feeds) -> Tensors:
        """What a call is given besides keys and values, by name."""
        named = feeds.named()
        if self.padded_columns:
            named = _on_static_columns(named, self.signature)
        return {name: named[name] for name in self.fed}

    def quantize_past(self, tensors: Tensors) -> Tensors:
        """Pasts as the program keeps them."""
        return tensors | {
            name: np.clip(np.rint(tensors[name].astype(np.float32) / scale), -128, 127).astype(np.int8)
            for name, scale in self._scale_of(past_names)
        }

    def rounded_past(self, tensors: Tensors) -> Tensors:
        """Pasts as floats that the program can keep."""
        integers = self.quantize_past(tensors)
        return integers | {
            name: (integers[name] * scale).astype(tensors[name].dtype) for name, scale in self._scale_of(past_names)
        }

    def dequantize_past(self, tensors: Tensors) -> Tensors:
        """Pasts as floats."""
        scale_of = dict(self._scale_of(past_names))
        return tensors | {name: tensors[name].astype(np.float32) * scale for name, scale in scale_of.items()}

    def dequantize_present(self, outputs: Tensors) -> Tensors:
        """Presents as floats."""
        scale_of = dict(self._scale_of(present_names))
        return outputs | {name: outputs[name].astype(np.float32) * scale for name, scale in scale_of.items()}

    def _scale_of(self, names: Callable[[int], tuple[str, str]]) -> Iterator[tuple[str, np.float32]]:
        if self.signature.cache_is_integer and self.kv_scales is not None:
            for layer, scales in enumerate(self.kv_scales):
                yield from zip(names(layer), scales, strict=True)
