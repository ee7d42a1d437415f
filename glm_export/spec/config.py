"""The one vocabulary of sizes: every other room speaks of a model through ``GlmConfig``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from glm_export.errors import ConfigError, listed, shown

SIZES = {
    "vocab_size": 1 << 22, "hidden_size": 1 << 17, "num_layers": 1 << 10, "num_heads": 1 << 12, "kv_heads": 1 << 12,
    "head_dim": 1 << 12, "ffn_size": 1 << 20, "max_positions": 1 << 22,
}  # fmt: skip
"""Counts, and what no model has more of: four times the largest there is, or more. What asks for more is damaged."""
MOST_EXPERTS = 1 << 17
"""Over all layers; GLM-4.6 has 14,720."""
BEST_OF_GROUP = 2
"""A group of experts is as good as this many of its best together."""
MOST_PREFIX = 1 << 16
EPSILONS = (1e-12, 0.1)
BASES, SCALES = (1.0, 1e12), (1e-6, 1e6)
"""Of rotary angles, and of what positions or scores are divided or multiplied by."""
LARGEST = 1e300
KINDS: dict[str, tuple[str, type | tuple[type, ...]]] = {
    "int": ("a whole number", int),
    "float": ("a finite number", (int, float)),
    "bool": ("true or false", bool),
    "str": ("a text", str),
    "int | None": ("a whole number", (int, type(None))),
}


def is_number(value: Any, kind: type = object) -> bool:
    """Whether a value is a finite number, of that kind; true and false are none."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and isinstance(value, kind)
    # A whole number beyond floats overflows where it becomes one.
    return number and abs(value) < LARGEST


def _require_types(record: Any) -> None:
    """See that every field holds what it is annotated with: values come from files."""
    for each in fields(record):
        kind, value = str(each.type), getattr(record, each.name)
        if kind not in KINDS:
            continue
        named, kinds = KINDS[kind]
        # In Python true and false are whole numbers.
        misfit = not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool)
        if misfit or (isinstance(value, int | float) and not abs(value) < LARGEST):
            raise ConfigError(f"{each.name} should be {named}, found {shown(value)}; check config.json")


def _require_within(named: Mapping[str, float], least: float, most: float) -> None:
    for name, value in named.items():
        if not least <= value <= most:
            raise ConfigError(f"{name} should be from {least:g} to {most:g}, found {shown(value)}; check config.json")


class Norm(StrEnum):
    """Which normalization a model uses throughout."""

    RMS = "rms"
    LAYER = "layer"


class Activation(StrEnum):
    """What stands between the two projections of an MLP."""

    SWIGLU = "swiglu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): slow pairs of channels are stretched by ``factor``, fast ones are left.

    The ramp between them runs from ``beta_fast`` to ``beta_slow`` turns over ``original_positions``.
    ``attention_factor`` multiplies cosines and sines. ``truncate`` rounds the ramp's ends to whole pairs.
    """

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def __post_init__(self) -> None:
        _require_types(self)
        _require_within({"YaRN's factor": self.factor, "its attention_factor": self.attention_factor}, *SCALES)
        _require_within({"YaRN's original context": self.original_positions}, 1, SIZES["max_positions"])
        _require_within({"beta_fast": self.beta_fast, "beta_slow": self.beta_slow}, *SCALES)
        if self.factor < 1 or self.original_positions <= 0 or self.beta_fast < self.beta_slow or self.beta_slow <= 0:
            raise ConfigError(
                "YaRN scales by a factor of 1 or more over a positive original context, from a faster beta to a slower "
                f"one; found factor {self.factor:g}, {self.original_positions} positions, betas {self.beta_fast:g} "
                f"and {self.beta_slow:g}; check rope_scaling in config.json"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryConfig:
    """How the leading ``axes * dim`` values of each head are rotated by position.

    ``angle = position / position_scale * base ** (-2 i / dim)`` for pair ``i < dim / 2``
    (RoFormer, arXiv:2104.09864). Most GLMs pair neighbours ``(x0, x1)``: ``interleaved``; GLM-4.5 and ChatGLM-6B pair
    two halves. With two ``axes`` (ChatGLM-6B) each half of the head follows a position of its own.
    ``float16_frequencies``: the frequencies are rounded to float16 in every dtype, as ChatGLM-6B's code does.
    ``yarn``: stretched frequencies; the others are stretched evenly by ``position_scale``.
    """

    dim: int
    base: float = 10000.0
    position_scale: float = 1.0
    interleaved: bool = True
    axes: int = 1
    float16_frequencies: bool = False
    yarn: YarnScaling | None = None

    def __post_init__(self) -> None:
        _require_types(self)
        if self.dim <= 0 or self.dim % 2:
            raise ConfigError(f"rotary dim must be a positive even number, found {self.dim}")
        _require_within({"rotary base": self.base}, *BASES)
        _require_within({"rotary position scale": self.position_scale}, *SCALES)
        _require_within({"rotary axes": self.axes}, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """A mixture of experts in place of the MLP, from layer ``first_layer`` on.

    Each token goes to ``per_token`` of ``routed`` experts of width ``ffn_size``, weighted by its sigmoid scores times
    ``scale`` (made to sum to 1 before, where ``normalize``); ``shared`` experts see every token. With several
    ``groups`` of neighbouring experts they are chosen within the best ``chosen_groups`` of them alone.
    """

    routed: int
    per_token: int
    shared: int
    ffn_size: int
    first_layer: int
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    chosen_groups: int = 1

    def __post_init__(self) -> None:
        _require_types(self)
        _require_within({"width of an expert": self.ffn_size}, 1, SIZES["ffn_size"])
        _require_within({"scale of experts": self.scale}, *SCALES)
        _require_within({"shared experts": self.shared}, 0, MOST_EXPERTS // SIZES["num_layers"])
        if not 0 < self.per_token <= self.routed or self.ffn_size <= 0 or min(self.shared, self.first_layer) < 0:
            raise ConfigError(
                f"{self.per_token} of {self.routed} experts of width {self.ffn_size} cannot be chosen; "
                "check config.json"
            )
        self._require_groups()

    def _require_groups(self) -> None:
        """A group is scored by its two best experts, and the chosen ones must hold enough."""
        if self.groups == self.chosen_groups == 1:
            return
        size = self.routed // max(self.groups, 1)
        whole = 1 <= self.chosen_groups <= self.groups <= self.routed and self.routed % self.groups == 0
        if not whole or size < BEST_OF_GROUP or self.chosen_groups * size < self.per_token:
            raise ConfigError(
                f"{self.per_token} of {self.routed} experts cannot be chosen from {self.chosen_groups} of "
                f"{self.groups} groups; check config.json"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GlmConfig:
    """Sizes and switches of one decoder, checked when made.

    Sizes are counts: ``hidden_size`` and ``ffn_size`` in channels, ``max_positions`` in tokens.
    ``ffn_size`` is the width after the gate (SwiGLU reads twice as much). ``headwise_qkv`` describes the weight
    file alone: rows of the packed projection are stored head by head. ``rotary`` is None where positions are learned
    (GLM): two tables, of places in the text and of places within a filled blank. With ``prefix_mask`` the tokens
    before ``<sop>`` see each other. ``residual_alpha`` scales the residual (ChatGLM-6B). ``label_shift`` is how far
    labels stand ahead of logits. ``sop_token_id`` and ``mask_token_ids`` (first choice first) are set where
    config.json names them. ``prefix_length``: tokens a P-Tuning prefix takes of every cache. ``text_part_of``: the
    vision model this is the text part of. ``notes``: a line for each thing that was made of config.json and that it
    does not say outright.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    max_positions: int
    rotary: RotaryConfig | None
    norm: Norm = Norm.RMS
    norm_eps: float = 1e-5
    headwise_qkv: bool = False
    qkv_bias: bool = True
    linear_bias: bool = False
    final_norm: bool = True
    sandwich_norms: bool = False
    residual_from_norm: bool = False
    residual_alpha: float = 1.0
    tied_head: bool = False
    activation: Activation = Activation.SWIGLU
    prefix_mask: bool = False
    qk_norm: bool = False
    experts: ExpertsConfig | None = None
    label_shift: int = 1
    stored_dtype: str = "float16"
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0
    sop_token_id: int | None = None
    mask_token_ids: tuple[int, ...] = ()
    prefix_length: int = 0
    text_part_of: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def expert_layers(self) -> range:
        """Indices of the layers that have experts in place of the MLP."""
        return range(min(self.experts.first_layer, self.num_layers), self.num_layers) if self.experts else range(0)

    def __post_init__(self) -> None:
        for name, most in SIZES.items():
            value = getattr(self, name)
            if not is_number(value, int) or value <= 0:
                raise ConfigError(f"{name} must be a positive whole number, found {shown(value)} in config.json")
            if value > most:
                raise ConfigError(f"{name} is {shown(value)}, and no model has more than {most}; mend config.json")
        _require_types(self)
        if self.num_heads % self.kv_heads:
            raise ConfigError(
                f"{self.num_heads} attention heads cannot share {self.kv_heads} key-value heads evenly; "
                "check config.json"
            )
        if self.rotary and self.rotary.axes * self.rotary.dim > self.head_dim:
            raise ConfigError(
                f"rotary dim {self.rotary.axes} x {self.rotary.dim} exceeds the head size {self.head_dim}; "
                "check config.json"
            )
        _require_within({"the norm's epsilon": self.norm_eps}, *EPSILONS)
        _require_within({"residual_alpha": self.residual_alpha}, *SCALES)
        _require_within({"a prefix's length": self.prefix_length}, 0, MOST_PREFIX)
        if self.experts is not None:
            _require_within({"experts of all layers": self.experts.routed * self.num_layers}, 1, MOST_EXPERTS)
        named = (*self.eos_token_ids, self.pad_token_id, *self.mask_token_ids, self.sop_token_id or 0)
        outside = [i for i in named if not is_number(i, int) or not 0 <= i < self.vocab_size]
        if outside:
            raise ConfigError(
                f"token ids {listed(outside)} lie outside the vocabulary of {self.vocab_size}; check config.json"
            )

    @property
    def position_axes(self) -> int:
        """Positions a token has: one, or two (in the text, and within the part that is written)."""
        return self.rotary.axes if self.rotary else 2

    @property
    def text_positions(self) -> int:
        """Positions there are for text: a P-Tuning prefix of a causal family takes the first ones."""
        return self.max_positions - (0 if self.prefix_mask else self.prefix_length)

    @property
    def max_columns(self) -> int:
        """Columns of a cache that holds the whole context, a P-Tuning prefix included."""
        return self.text_positions + self.prefix_length

    @property
    def most_columns(self) -> int:
        """Columns that all tokens with a position could fill: a prefix family's written part has positions of its own.

        The first that is written stands at 1.
        """
        return self.max_columns + (self.max_positions - 1 if self.prefix_mask else 0)

    @property
    def q_size(self) -> int:
        """Channels of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Channels of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``manifest.json``."""
        lists = {name: list(getattr(self, name)) for name in ("eos_token_ids", "mask_token_ids")}
        values = asdict(self) | {"norm": self.norm.value, "activation": self.activation.value} | lists
        return {key: value for key, value in values.items() if key != "notes"}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> GlmConfig:
        """Inverse of :meth:`to_json`.

        Raises:
            ConfigError: a field is missing, unknown or inconsistent.
        """
        try:
            return cls(
                **values
                | {
                    "rotary": _rotary(values["rotary"]) if values["rotary"] else None,
                    "experts": ExpertsConfig(**values["experts"]) if values["experts"] else None,
                    "norm": Norm(values["norm"]),
                    "activation": Activation(values["activation"]),
                    "eos_token_ids": tuple(values["eos_token_ids"]),
                    "mask_token_ids": tuple(values["mask_token_ids"]),
                }
            )
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise ConfigError(
                f"the config in manifest.json does not fit this version of glm-export: {error}"
            ) from error


def _rotary(values: dict[str, Any]) -> RotaryConfig:
    yarn = values.get("yarn")
    return RotaryConfig(**values | {"yarn": YarnScaling(**yarn) if yarn else None})
