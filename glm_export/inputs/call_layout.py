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
    is_cache_name,
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
        """Read them from ``attention_mask``: of tokens ``[B, T]``, or of pairs ``[B, 1, S, T]``."""
        mask = tensors[ATTENTION_MASK].astype(bool)
        columns = mask.shape[-1] - tensors[INPUT_IDS].shape[1]
        real = mask if mask.ndim == 2 else _real_of_pairs(mask[:, 0])
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


def _real_of_pairs(mask_BST: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Real columns ``[B, T]``: all behind the first that sees or is seen. Padding on the left is neither."""
    columns = mask_BST.shape[2] - mask_BST.shape[1]
    real: NDArray[np.bool_] = np.logical_or.reduce(mask_BST, axis=1)
    real[:, columns:] |= np.logical_or.reduce(mask_BST, axis=2)
    real[:, -1:] = True
    found: NDArray[np.bool_] = np.logical_or.accumulate(real, axis=1)
    return found


def _to_own_lengths(tensors: Tensors, signature: Signature) -> Tensors:
    """Canonical inputs as a program with own lengths takes them.

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
        WRITE_INDICES: rows.before,
        LAST_TOKEN_IDS: np.maximum(rows.new.sum(axis=1) - 1, 0),
        QUERY_LENGTHS: rows.new.sum(axis=1).astype(np.int32),
    }
    if signature.prefix_mask:
        given |= _pairs_of_own_lengths(tensors, rows)
        given[ATTENTION_MASK] = _as_wide_as_the_cache(given[ATTENTION_MASK], signature)
    else:
        given[ATTENTION_MASK] = (np.arange(total.max()) < total[:, None]).astype(np.int64)
        given[POSITION_IDS] = rows.before[:, None] + np.arange(queries)
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


def _pairs_of_own_lengths(tensors: Tensors, rows: OwnLengths) -> Tensors:
    """Mask ``[B, 1, S, T]`` and places ``[B, 2, S]``, each row from its own first column on."""
    batch, queries = rows.new.shape
    mask = np.zeros((batch, 1, queries, int(rows.before.max()) + queries), bool)
    places = np.zeros((batch, 2, queries), np.int64)
    for index, (new, real) in enumerate(zip(rows.new, rows.all, strict=True)):
        mask[index, 0, : new.sum(), : real.sum()] = tensors[ATTENTION_MASK][index, 0][new][:, real]
        places[index, :, : new.sum()] = tensors[POSITION_IDS][index][:, new]
    return {ATTENTION_MASK: mask, POSITION_IDS: places}


def _as_wide_as_the_cache(mask_B1ST: NDArray[Any], signature: Signature) -> NDArray[Any]:
    """Where the cache is static the mask of pairs says of every column who sees it."""
    free = signature.static_length - mask_B1ST.shape[-1] if signature.cache is Cache.STATIC else 0
    return np.pad(mask_B1ST, ((0, 0), (0, 0), (0, 0), (0, free))) if free else mask_B1ST


def _own_lengths_to_canonical(outputs: Tensors, tensors: Tensors) -> Tensors:
    """Outputs of own lengths back in the columns of the canonical inputs; padding is 0."""
    rows = OwnLengths.of(tensors)
    result: Tensors = {}
    for name, output in outputs.items():
        by_token = not is_cache_name(name)
        # Of logits the last columns, where the program tells no others.
        real = rows.new[:, -output.shape[1] :] if by_token else rows.all
        if name == LOGITS and output.shape[1] == 1:
            result[name] = output
            continue
        # Column axis 1 of logits and hidden states, 2 of a cache.
        output_BTX = output if by_token else output.swapaxes(1, 2)
        back_BTX = np.zeros((real.shape[0], real.shape[1], *output_BTX.shape[2:]), output.dtype)
        for index, columns in enumerate(real):
            back_BTX[index, columns] = output_BTX[index, : columns.sum()]
        result[name] = back_BTX if by_token else back_BTX.swapaxes(1, 2)
    return result


def without_padding(outputs: Tensors, tensors: Tensors) -> Tensors:
    """Canonical outputs with 0 where there is padding, as :meth:`CallLayout.to_canonical` leaves it."""
    rows = OwnLengths.of(tensors)
    return {
        name: output
        if name == LOGITS and output.shape[1] == 1
        else np.where(
            rows.all[:, None, :, None] if is_cache_name(name) else rows.new[:, -output.shape[1] :, None], output, 0
        )
        for name, output in outputs.items()
    }


def run_rows_apart(run: Callable[[Tensors], Tensors], tensors: Tensors, signature: Signature) -> Tensors:
    """A canonical call one row at a time, each without its padding; padding of outputs is 0."""
    found = [_run_alone(run, tensors, row, signature) for row in range(len(tensors[INPUT_IDS]))]
    return {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}


def _run_alone(run: Callable[[Tensors], Tensors], tensors: Tensors, row: int, signature: Signature) -> Tensors:
    real = OwnLengths.of(tensors)
    past, padding = real.past.shape[1], int(real.new[row].argmax())
    alone = {name: array[row : row + 1] for name, array in tensors.items()}
    mask = np.delete(alone[ATTENTION_MASK], np.s_[past : past + padding], axis=-1)
    if signature.prefix_mask:
        mask = mask[:, :, padding:]
    alone |= {name: alone[name][..., padding:] for name in (INPUT_IDS, POSITION_IDS)}
    outputs = run(alone | {ATTENTION_MASK: mask})
    result = {
        name: np.insert(output, [past] * padding, 0, axis=CACHE_LENGTH_AXIS)
        if is_cache_name(name)
        else np.pad(output, ((0, 0), (padding, 0), (0, 0)))
        for name, output in outputs.items()
        if name != LOGITS
    }
    missing = signature.told_logits(real.new.shape[1]) - outputs[LOGITS].shape[1]
    return {LOGITS: np.pad(outputs[LOGITS], ((0, 0), (missing, 0), (0, 0)))} | result


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLayout:
    """How a program of this signature is called, by callers who know the canonical layout and floats alone.

    ``kv_scales`` ``[L, 2]``: of key and value by layer, where the program keeps int8. ``fed``: names of the inputs that
    are no keys or values; every step asks for them.
    """

    signature: Signature
    kv_scales: NDArray[np.float32] | None = None
    fed: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fed", tuple(spec.name for spec in self.signature.inputs if not spec.is_cache))
        if self.signature.cache_is_integer and self.kv_scales is None:
            raise ConfigError("the program's cache keeps integers, and no scales were given; pass those of its ranges")

    @property
    def is_canonical(self) -> bool:
        """Whether the program takes the canonical call as it is."""
        return self.signature.cache is Cache.GROWING and not self.signature.cache_is_integer

    def to_program(self, tensors: Tensors) -> Tensors:
        """Canonical inputs as the program takes them."""
        tensors = self.quantize_past(tensors)
        if self.signature.own_lengths:
            return _to_own_lengths(tensors, self.signature)
        return {spec.name: tensors[spec.name] for spec in self.signature.inputs}

    def to_canonical(self, outputs: Tensors, tensors: Tensors) -> Tensors:
        """The program's outputs in canonical columns; ``tensors`` are the canonical inputs."""
        outputs = self.dequantize_present(outputs)
        return _own_lengths_to_canonical(outputs, tensors) if self.signature.own_lengths else outputs

    def inputs_without_cache(self, feeds: Feeds) -> Tensors:
        """What a call is given besides keys and values, by name."""
        named = feeds.named()
        if self.signature.prefix_mask:
            named[ATTENTION_MASK] = _as_wide_as_the_cache(named[ATTENTION_MASK], self.signature)
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
        """Presents as floats, those that are among the outputs."""
        scale_of = dict(self._scale_of(present_names))
        known = {name: scale for name, scale in scale_of.items() if name in outputs}
        return outputs | {name: outputs[name].astype(np.float32) * scale for name, scale in known.items()}

    def _scale_of(self, names: Callable[[int], tuple[str, str]]) -> Iterator[tuple[str, np.float32]]:
        if self.signature.cache_is_integer and self.kv_scales is not None:
            for layer, scales in enumerate(self.kv_scales):
                yield from zip(names(layer), scales, strict=True)
