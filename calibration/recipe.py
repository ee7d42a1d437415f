"""A recipe: in which form each weight is stored and multiplied, as one frozen value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from glm_export.spec.batch_invariance import BatchInvariance, of_layout, weakest
from glm_export.spec.capabilities import Capabilities
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import Signature
from glm_export.spec.weight_formats import (
    EMBEDDING,
    HEAD,
    BlockWeights,
    ChannelWeights,
    ExpertWeights,
    QdqWeights,
    WeightFormat,
    WeightFormats,
    expert_stacks,
)

ROUTED_TOLERANCE = 0.5
"""A rounded activation can send a token to another expert, and its values jump: golden GLM-4.5 needs 0.25."""


class ExcludedWeights(NamedTuple):
    """Linear weights a recipe leaves in float: a pattern of parameter names (``*`` stands for anything), and why."""

    pattern: str
    reason: str


KV_TOLERANCE = 0.05
"""Granted keys and values kept as int8: one on the border between two steps falls to either."""
KV_DTYPES = frozenset({"float32", "float16"})
"""Of programs that keep their keys and values as int8."""
TABLE_WEIGHTS = BlockWeights(bits=8, block=32)
"""How recipes store the table tokens are looked up in, where they say nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is quantized, and how.

    ``layers``: form of the linear layers' weights where the dialect has operators for it; None leaves them.
    ``explicit``: their form in the other dialects, which say Q/DQ. ``head``, ``explicit_head``: of the last product;
    None spares it.
    ``prompt``: a second form of the same layers that reads prompts, kept beside the first, which then decodes.
    ``embedding``: of the table tokens are looked up in, which costs no speed and leaves 9 bits of a value; None spares
    it. ``experts``: of routed experts, where the dialect computes the chosen ones alone; None leaves them.
    ``dtypes``: of programs, where the form has operators; in which dialects, their capabilities say.
    ``tolerance``: what ``check`` grants the rounding of activations, as a share of an output's largest value; weights
    are rounded in its reference as well.

    ``smoothing``: ``smoothquant`` or ``awq``, scales moved from activations into weights. ``rounding``: ``nearest`` or
    ``gptq``, which calibration itself does. ``observer``: which threshold of the ranges scales activations.
    ``usual``: what the median of a float32 program's cases must keep to besides, since ties are rare.
    ``smoothing_with_ranges``: what ``smoothing`` is where ranges are given, which the recipe does not need.
    ``kv``: keys and values are kept as int8. ``excluded``: linear weights left in float.
    """

    name: str
    summary: str
    layers: WeightFormat | None
    head: WeightFormat | None
    dtypes: frozenset[str]
    tolerance: float
    explicit: QdqWeights | None = None
    explicit_head: QdqWeights | None = None
    prompt: WeightFormat | None = None
    embedding: BlockWeights | None = TABLE_WEIGHTS
    experts: ExpertWeights | None = None
    smoothing: str | None = None
    smoothing_with_ranges: str | None = None
    rounding: str = "nearest"
    observer: str = "min_max"
    usual: float | None = None
    kv: bool = False
    excluded: tuple[ExcludedWeights, ...] = ()

    @property
    def static_activations(self) -> bool:
        """Whether activations are rounded with scales found beforehand."""
        return any(form is not None and form.activation_dtype for form in (self.layers, self.explicit))

    @property
    def rounds_activations(self) -> bool:
        """Whether what products read is rounded, with scales found beforehand or as it comes."""
        explicit = (self.explicit, self.layers)
        return self.static_activations or any(form is not None and form.rounds_each_token for form in explicit)

    @property
    def in_blocks(self) -> bool:
        """Whether layers have scales of blocks, in one dialect or another."""
        return any(form is not None and form.scale_block is not None for form in (self.layers, self.explicit))

    @property
    def needs(self) -> str:
        """What an export needs besides the checkpoint: nothing, ``ranges``, or ranges made for this recipe."""
        if self.rounding == "gptq":
            return "ranges of its own"
        return "ranges" if self.static_activations or self.smoothing or self.kv else "nothing"

    @property
    def batch_invariance(self) -> BatchInvariance:
        """How far a row depends on the rows beside it, by the formats of its products.

        With a form for prompts a call's tokens, over all rows, say which is taken.
        """
        if self.prompt is not None:
            return BatchInvariance.NONE
        formats = (self.layers, self.head)
        return weakest(*(form.batch_invariance for form in formats if form is not None))

    def to_json(self) -> dict[str, Any]:
        """Every field by its name, :attr:`needs` and :attr:`batch_invariance`.

        Two fields have the names that ``recipes --json`` gave them first.
        """
        values = asdict(self) | {"needs": self.needs, "batch_invariance": self.batch_invariance.value}
        return values | {"bound": values.pop("tolerance"), "spared": values.pop("excluded")}

    @property
    def block_options(self) -> dict[str, int]:
        """Of a recipe in a dialect's formats, what :meth:`with_blocks` makes it of the plain one."""
        block = self.layers.scale_block if self.layers is not None else None
        if block is None:
            return {}
        head = self.head
        if head is None:
            return {"block_size": block}
        bits = head.bits if isinstance(head, BlockWeights) else int(str(head.explicit_dtype).removeprefix("int"))
        return {"block_size": block, "head_bits": bits}

    def with_blocks(self, block_size: int | None = None, head_bits: int | None = None) -> Recipe:
        """The recipe with other blocks, or another head, wherever its formats have blocks; experts keep theirs.

        Args:
            block_size: neighbours along the input channels that share a scale, in the linear layers, and in a head
                that is stored as they are.
            head_bits: of the last product; 4 gives it the blocks of the layers.

        Raises:
            InputError: no format has such blocks or bits.
        """
        layers, explicit = self.layers, self.explicit
        if block_size is not None:
            layers = replace(layers, block=block_size) if isinstance(layers, BlockWeights) else layers
            if explicit is not None and explicit.block is not None:
                explicit = replace(explicit, block=block_size)
        head = layers if self.head == self.layers else self.head
        explicit_head = explicit if self.explicit_head == self.explicit else self.explicit_head
        if head_bits is not None:
            if isinstance(layers, BlockWeights) and isinstance(head, BlockWeights):
                head = replace(head if head_bits == head.bits else layers, bits=head_bits)
            if explicit is not None and explicit.block is not None and explicit_head is not None:
                same = explicit_head.dtype == f"int{head_bits}"
                explicit_head = explicit_head if same else replace(explicit, dtype=f"int{head_bits}")
        return replace(self, layers=layers, explicit=explicit, head=head, explicit_head=explicit_head)

    def with_int8_cache(self) -> Recipe:
        """The recipe, and keys and values kept as int8 besides, whose scales are measured."""
        return replace(self, kv=True, dtypes=self.dtypes & KV_DTYPES, tolerance=max(self.tolerance, KV_TOLERANCE))

    def carried_by(self, can: Capabilities) -> Recipe:
        """The recipe in the formats a dialect has operators for.

        Args:
            can: the dialect's capabilities.
        """
        experts = self.experts if can.grouped_experts else None
        if can.stored_products and self.layers is not None:
            return replace(self, experts=experts).with_sums_in_16_bits(fit=can.sums_in_16_bits)
        # Weights alone are rounded in the reference as well.
        tolerance = self.tolerance if self.rounds_activations else KV_TOLERANCE if self.kv else 0.0
        carried = replace(
            self,
            layers=self.explicit,
            head=self.explicit_head,
            prompt=None,
            embedding=None,
            experts=experts,
            tolerance=tolerance,
        )
        return carried.with_sums_in_16_bits(fit=can.sums_in_16_bits)

    @property
    def multiplies_integers(self) -> bool:
        """Whether int8 activations are multiplied by int8 weights, in the formats it has now."""
        return any(form is not None and form.multiplies_integers for form in (self.layers, self.head, self.prompt))

    @property
    def sums_in_16_bits(self) -> bool:
        """Whether integers are multiplied, and such that two neighbouring products never leave 16 bits."""
        return self.multiplies_integers and self == self.with_sums_in_16_bits(fit=True)

    def with_sums_in_16_bits(self, *, fit: bool) -> Recipe:
        """The recipe with integers whose neighbours' products fit 16 bits, or with the finest there are."""

        def of(form: WeightFormat | None) -> WeightFormat | None:
            if isinstance(form, ChannelWeights | QdqWeights) and form.multiplies_integers:
                return replace(form, sums_in_16_bits=fit)
            return form

        return replace(self, layers=of(self.layers), head=of(self.head), prompt=of(self.prompt))

    def fits(self, can: Capabilities) -> bool:
        """Whether a dialect with these capabilities can carry the recipe."""
        if self.kv and not can.keeps_integers:
            return False
        carried = self.carried_by(can)
        if carried.layers is None:
            # Nothing is asked of products, or nothing the dialect has operators for.
            return self.layers is None and self.explicit is None
        return all(
            form.explicit_dtype in can.qdq_dtypes and (form.scale_block is None or can.qdq_blocks)
            for form in (carried.layers, carried.head)
            if form is not None and form.explicit
        )

    def dtypes_in(self, can: Capabilities) -> frozenset[str]:
        """Dtypes of programs that a dialect with these capabilities has operators for."""
        dtypes = self.dtypes if can.half_scales else self.dtypes & {"float32"}
        return dtypes - {"bfloat16"} if can.stored_products and self.layers is not None else dtypes

    def formats(
        self, linear_weights: list[str], hidden_size: int, excluded: Collection[str] = ()
    ) -> dict[str, WeightFormats]:
        """The formats of each linear layer's weight and the embedding, by parameter name; excluded ones are missing.

        An embedding whose rows are no multiple of its block is excluded too: its operator cuts no block short.

        Args:
            linear_weights: parameter names.
            hidden_size: width of an embedding's row.
            excluded: linear weights excluded besides those the recipe names.
        """
        table = {}
        if self.embedding is not None and hidden_size % self.embedding.block == 0:
            table[EMBEDDING] = WeightFormats(self.embedding)
        kept = [name for name in linear_weights if name not in excluded and self.excludes(name) is None]
        return table | self._linear_formats(kept)

    def expert_formats(self, config: GlmConfig, excluded: Collection[str] = ()) -> dict[str, WeightFormats]:
        """The formats of the routed experts' weights, by parameter name; none where a width is no multiple of a block.

        Args:
            config: the sizes.
            excluded: parameters to leave in float; a layer's two stacks go together.
        """
        form, experts = self.experts, config.experts
        if form is None or experts is None or config.hidden_size % form.block or experts.ffn_size % form.block:
            return {}
        left = {name.rpartition(".")[0] for name in excluded}
        return {name: WeightFormats(form) for name in expert_stacks(config) if name.rpartition(".")[0] not in left}

    def excludes(self, name: str) -> ExcludedWeights | None:
        """The first rule that leaves this weight in float."""
        return next((rule for rule in self.excluded if fnmatchcase(name, rule.pattern)), None)

    def _linear_formats(self, linear_weights: list[str]) -> dict[str, WeightFormats]:
        chosen = {name: (self.head, None) if name == HEAD else (self.layers, self.prompt) for name in linear_weights}
        return {name: WeightFormats(step, prompt) for name, (step, prompt) in chosen.items() if step is not None}

    def usual_for(self, config: GlmConfig) -> float | None:
        """:attr:`usual`; None where experts' operator rounds activations in a way of its own, in every case."""
        return None if self.expert_formats(config) else self.usual

    def tolerance_for(self, *, experts: bool) -> float:
        """:attr:`tolerance`, or where tokens are routed :data:`ROUTED_TOLERANCE`."""
        return max(self.tolerance, ROUTED_TOLERANCE) if experts else self.tolerance


def program_invariance(config: GlmConfig, signature: Signature, recipe: Recipe | None) -> BatchInvariance:
    """How far a row depends on others in a program of this layout, quantized or not."""
    return weakest(of_layout(config, signature), *([recipe.batch_invariance] if recipe is not None else []))
