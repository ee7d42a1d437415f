"""Names, dtypes and symbolic dims of every graph input and output: written here, read everywhere.

The names are those of the ecosystem (Optimum, onnxruntime-genai).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Literal, get_args

from glm_export.errors import ConfigError, listed, reason, shown
from glm_export.spec.config import GlmConfig, is_number
from glm_export.spec.dtypes import STORED_BITS

BATCH = "batch_size"
SEQUENCE = "sequence_length"
PAST = "past_sequence_length"
TOTAL = "total_sequence_length"
"""PAST + SEQUENCE."""

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
POSITION_IDS = "position_ids"
WRITE_INDICES = "write_indices"
LAST_TOKEN_IDS = "last_token_ids"
QUERY_LENGTHS = "query_seqlens"
LOGITS = "logits"
LAST_HIDDEN_STATE = "last_hidden_state"
HiddenStatesKind = Literal["last", "all"]
HIDDEN_STATES_KINDS: tuple[HiddenStatesKind, ...] = get_args(HiddenStatesKind)
"""Of hidden states put out besides: what the head reads ``[B, S, H]``, or what each layer reads as well."""
CACHE_LENGTH_AXIS = 2
LogitsKind = Literal["all", "last", "recent"]
LOGITS_KINDS: tuple[LogitsKind, ...] = get_args(LogitsKind)
"""Logits of every token ``[B, S, V]``, of the last one ``[B, 1, V]``, or of the last few ``[B, min(S, 17), V]``."""
KvCacheDtype = Literal["int8"]
KV_CACHE_DTYPES: tuple[KvCacheDtype, ...] = get_args(KvCacheDtype)
"""Of keys and values, where it is not the program's own."""
RECENT = "recent_tokens"
RECENT_TOKENS = 17
"""min(S, 17), its symbol and the 17: a row's own token, and 16 guesses of what follows (``generation/drafts.py``)."""


class Cache(Enum):
    """How a program keeps keys and values from one call to the next.

    ``GROWING``: present is past and new tokens, one after another; rows are padded on the left together.
    ``SHARED``: one buffer is past and present at once; each row has a length of its own and is padded on the right.
    Causal families: a token's position is its column, and the program counts it itself, from ``attention_mask``.
    Prefix families: positions are given, and so is the column where each row is written.
    ``STATIC``: as SHARED, with a buffer of fixed size, and the program is told where each token stands.
    """

    GROWING = "growing"
    SHARED = "shared"
    STATIC = "static"


CACHE, HIDDEN = "cache", "hidden states"
OUTPUT_KINDS = (LOGITS, CACHE, HIDDEN)
"""What outputs are told of together."""
CACHE_PREFIXES = ("past_key_values.", "present.")


def past_names(layer: int) -> tuple[str, str]:
    """Cache inputs of a layer: key, value."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Cache outputs of a layer: key, value."""
    return f"present.{layer}.key", f"present.{layer}.value"


def hidden_state_name(layer: int) -> str:
    """Output with what a layer reads: the residual stream."""
    return f"hidden_states.{layer}"


def hidden_state_names(kind: str | None, layers: int) -> tuple[str, ...]:
    """Outputs of one of :data:`HIDDEN_STATES_KINDS`, first layer first; none of None.

    With ``all`` they are the tuple that transformers calls ``hidden_states``: its last is behind the final norm.
    """
    if kind is None:
        return ()
    return (*(map(hidden_state_name, range(layers)) if kind == "all" else ()), LAST_HIDDEN_STATE)


def output_kind(name: str) -> str:
    """One of :data:`OUTPUT_KINDS`."""
    return LOGITS if name == LOGITS else CACHE if is_cache_name(name) else HIDDEN


def is_cache_name(name: str) -> bool:
    """Whether an input or output is keys or values ``[B, K, T, D]``; other outputs are ``[B, S, …]``, by token."""
    return name.startswith(CACHE_PREFIXES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One graph input or output; a dim is a size or a symbol."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    def __post_init__(self) -> None:
        dims = all(isinstance(dim, str) or (is_number(dim, int) and dim > 0) for dim in self.dims)
        axes = 4 if self.is_cache else 3 if self.name == LOGITS else len(self.dims)
        if not isinstance(self.name, str) or self.dtype not in STORED_BITS or not dims or len(self.dims) != axes:
            raise ConfigError(
                f"{shown(self.name)} is no input or output of a program: found {shown(self.dtype)} {shown(self.dims)}"
            )

    @property
    def is_cache(self) -> bool:
        """Whether it is keys or values."""
        return is_cache_name(self.name)

    def shape(self, **sizes: int) -> tuple[int, ...]:
        """Concrete sizes, e.g. ``spec.shape(batch_size=1, past_sequence_length=0)``.

        Raises:
            ConfigError: a symbol was given no size.
        """
        missing = [dim for dim in self.dims if isinstance(dim, str) and dim not in sizes]
        if missing:
            raise ConfigError(f"{self.name} has symbolic dims {listed(missing)} that were given no size")
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)

    def nbytes(self, **sizes: int) -> int:
        """Bytes of a tensor of these sizes; see :meth:`shape`."""
        return math.prod(self.shape(**sizes)) * STORED_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """All inputs and outputs of a program, in graph order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """The input of that name.

        Raises:
            ConfigError: there is none.
        """
        for spec in self.inputs:
            if spec.name == name:
                return spec
        raise ConfigError(f"the program has no input {name!r}; it has {', '.join(s.name for s in self.inputs)}")

    @property
    def cache(self) -> Cache:
        """How the program keeps keys and values; its inputs say it."""
        if isinstance(self.input(past_names(0)[0]).dims[CACHE_LENGTH_AXIS], int):
            return Cache.STATIC
        told = {spec.name for spec in self.inputs}
        return Cache.GROWING if POSITION_IDS in told and WRITE_INDICES not in told else Cache.SHARED

    @property
    def static_length(self) -> int:
        """Columns of a static cache.

        Raises:
            ConfigError: the cache is of another kind.
        """
        length = self.input(past_names(0)[0]).dims[CACHE_LENGTH_AXIS]
        if not isinstance(length, int):
            raise ConfigError(f"the program's cache has no fixed size; its dims are {length!r}")
        return length

    @property
    def cache_is_integer(self) -> bool:
        """Whether keys and values are kept as integers."""
        return self.input(past_names(0)[0]).dtype == "int8"

    @property
    def prefix_mask(self) -> bool:
        """Whether the program is told which token sees which: ``attention_mask`` is ``[B, 1, S, T]``."""
        return any(spec.name == ATTENTION_MASK and len(spec.dims) == 4 for spec in self.inputs)

    @property
    def own_lengths(self) -> bool:
        """Whether each row fills the cache from column 0 on; otherwise rows are padded on the left together."""
        return self.cache is not Cache.GROWING

    @property
    def whole_prompts(self) -> bool:
        """Whether a prompt is read before its row joins: its context sees itself, or rows are padded together."""
        return self.prefix_mask or not self.own_lengths

    @property
    def counts_positions(self) -> bool:
        """Whether the program counts positions itself, from a mask of tokens."""
        return all(spec.name != POSITION_IDS for spec in self.inputs)

    @property
    def ragged(self) -> bool:
        """Whether the program is told how many tokens of a call each row has: some, one, or none."""
        return any(spec.name == QUERY_LENGTHS for spec in self.inputs)

    def told_query_lengths(self) -> Signature:
        """The same program, told of each row how many of a call's columns are its own, int32 ``[B]``."""
        told = TensorSpec(name=QUERY_LENGTHS, dtype="int32", dims=(BATCH,))
        first_cache = next(index for index, spec in enumerate(self.inputs) if spec.is_cache)
        return Signature(inputs=(*self.inputs[:first_cache], told, *self.inputs[first_cache:]), outputs=self.outputs)

    @property
    def hidden_states(self) -> tuple[str, ...]:
        """Names of the hidden states that are put out ``[B, S, H]``, first layer first."""
        return tuple(spec.name for spec in self.outputs if output_kind(spec.name) == HIDDEN)

    @property
    def last_logits_only(self) -> bool:
        """Whether logits are ``[B, 1, V]``."""
        return self.most_logits == 1

    @property
    def most_logits(self) -> int | None:
        """Of how many tokens of a row, its last ones, a call tells logits at most; None: of all of them."""
        rows = next((spec.dims[1] for spec in self.outputs if spec.name == LOGITS), SEQUENCE)
        return rows if isinstance(rows, int) else RECENT_TOKENS if rows == RECENT else None

    def told_logits(self, new: int) -> int:
        """Of a call of ``new`` columns a row, of how many tokens logits are told."""
        return new if self.most_logits is None else min(new, self.most_logits)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``manifest.json``."""
        return {
            "inputs": [asdict(s) | {"dims": list(s.dims)} for s in self.inputs],
            "outputs": [asdict(s) | {"dims": list(s.dims)} for s in self.outputs],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Signature:
        """Inverse of :meth:`to_json`.

        Raises:
            ConfigError: the values are not a signature.
        """
        try:
            inputs, outputs = (
                tuple(TensorSpec(name=s["name"], dtype=s["dtype"], dims=tuple(s["dims"])) for s in values[side])
                for side in ("inputs", "outputs")
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the signature in manifest.json does not fit this version of glm-export: {reason(error)}"
            ) from error
        return cls(inputs=inputs, outputs=outputs)


def decoder_signature(
    config: GlmConfig,
    *,
    dtype: str,
    logits: str,
    cache: Cache = Cache.GROWING,
    max_length: int = 0,
    cache_dtype: str | None = None,
    hidden_states: str | None = None,
) -> Signature:
    """What a decoder takes and returns.

    Args:
        config: the sizes.
        dtype: of logits and cache, one of :data:`DTYPES`.
        logits: one of :data:`LOGITS_KINDS`.
        cache: how keys and values are kept.
        max_length: columns of a static cache.
        cache_dtype: of keys and values, where it is another.
        hidden_states: one of :data:`HIDDEN_STATES_KINDS`, put out behind the cache; None puts none out.
    """
    layers = range(config.num_layers)
    static = cache is Cache.STATIC
    by_index = logits != "all" and (static or (cache is Cache.SHARED and config.prefix_mask))
    past, present = (max_length, max_length) if static else (PAST, TOTAL)

    def pairs(names: tuple[str, str], length: int | str) -> list[TensorSpec]:
        dims = (BATCH, config.kv_heads, length, config.head_dim)
        return [TensorSpec(name=name, dtype=cache_dtype or dtype, dims=dims) for name in names]

    kinds: dict[str, int | str] = {"all": SEQUENCE, "last": 1, "recent": RECENT}
    return Signature(
        inputs=(
            TensorSpec(name=INPUT_IDS, dtype="int64", dims=(BATCH, SEQUENCE)),
            *_masks_and_positions(config, cache, present),
            *((TensorSpec(name=LAST_TOKEN_IDS, dtype="int64", dims=(BATCH,)),) if by_index else ()),
            *(spec for i in layers for spec in pairs(past_names(i), past)),
        ),
        outputs=(
            TensorSpec(name=LOGITS, dtype=dtype, dims=(BATCH, kinds[logits], config.vocab_size)),
            *(spec for i in layers for spec in pairs(present_names(i), present)),
            *(
                TensorSpec(name=name, dtype=dtype, dims=(BATCH, SEQUENCE, config.hidden_size))
                for name in hidden_state_names(hidden_states, config.num_layers)
            ),
        ),
    )


def _masks_and_positions(config: GlmConfig, cache: Cache, total: int | str) -> list[TensorSpec]:
    """What tells a program who sees whom, and where each token stands.

    Prefix families are told which token sees which, and where a cache is written in place; causal ones only which
    tokens are real, and with a static cache not even that: a token sees the columns up to its position.
    """
    mask = TensorSpec(name=ATTENTION_MASK, dtype="int64", dims=(BATCH, total))
    if config.prefix_mask:
        mask = TensorSpec(name=ATTENTION_MASK, dtype="bool", dims=(BATCH, 1, SEQUENCE, total))
    axes = () if config.position_axes == 1 else (config.position_axes,)
    positions = TensorSpec(name=POSITION_IDS, dtype="int64", dims=(BATCH, *axes, SEQUENCE))
    if cache is Cache.GROWING:
        return [mask, positions]
    if config.prefix_mask:
        return [mask, positions, TensorSpec(name=WRITE_INDICES, dtype="int64", dims=(BATCH,))]
    return [positions] if cache is Cache.STATIC else [mask]
