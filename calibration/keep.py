"""``--recipe keep``: a quantized source's own integers become the program's, instead of being rounded a second time.

The recipe is that source's: its bits, and one scale for as many neighbours as share one there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glm_export.calibration.quantization import Quantization
from glm_export.calibration.recipe import Recipe
from glm_export.calibration.recipes import KEEP
from glm_export.errors import InputError
from glm_export.spec.weight_formats import BLOCKS, BlockWeights, QdqWeights, WeightFormat, WeightFormats

if TYPE_CHECKING:  # options are read without torch
    from glm_export.calibration.formats import PrequantizedWeight
    from glm_export.checkpoints.checkpoint import Checkpoint
    from glm_export.checkpoints.quantized.module import KeptForm
    from glm_export.spec.weight_map import WeightRule

KEPT = "kept"
"""How such a recipe rounds; and the manifest's key for its sizes."""
ROW_BLOCK = 128
"""Where a format has blocks and the source one scale per row: it is repeated for each block of this size."""
DEFAULT_WAY = "without --recipe every weight is dequantized exactly"


def kept_recipe(bits: int, group: int | None) -> Recipe:
    """The recipe of a source.

    Args:
        bits: of an integer, 4 or 8.
        group: neighbours along the input channels that share a scale; None: a whole row.
    """
    block = _block(group) or ROW_BLOCK
    # TensorRT has no 4-bit integers with one scale per channel.
    explicit = QdqWeights(dtype=f"int{bits}", block=None if group is None and bits == 8 else block)
    # What is kept exactly is multiplied exactly: activations stay in float.
    layers = BlockWeights(bits=bits, block=block, accuracy_level=0)
    return Recipe(
        name=KEEP,
        summary="the integers of a quantized source",
        layers=layers,
        head=layers,
        explicit=explicit,
        explicit_head=explicit,
        embedding=None,
        dtypes=frozenset({"float32", "float16", "bfloat16"}),
        tolerance=0.0,
        rounding=KEPT,
    )


def kept_sizes(recipe: Recipe) -> dict[str, int | None]:
    """What a manifest must say of such a recipe, in any dialect's formats, to make it anew: see :func:`recipe_kept`."""
    assert recipe.layers is not None
    form = recipe.layers
    bits = form.bits if isinstance(form, BlockWeights) else int(str(form.explicit_dtype).removeprefix("int"))
    return {"bits": bits, "group": form.scale_block}


def recipe_kept(manifest: Mapping[str, Mapping[str, int | None]]) -> Recipe:
    """The recipe of a program, from its manifest."""
    sizes = manifest[KEPT]
    return kept_recipe(sizes["bits"] or 0, sizes["group"])


def keep(checkpoint: Checkpoint, excluded: Mapping[str, str] | None = None) -> Quantization:
    """What ``--recipe keep`` makes of a checkpoint.

    Args:
        checkpoint: with quantized weights.
        excluded: linear weights to leave in float besides those that are float in the source, and why.

    Raises:
        InputError: the source has no integers, or some that no weight format can hold.
    """
    forms, floats = _forms(checkpoint)
    if not forms:
        raise InputError(f"{checkpoint.folder} has no quantized weights to keep; leave --recipe keep out")
    (name, form), *others = forms.items()
    other = next((other for other, found in others if found != form), None)
    if other is not None:
        raise InputError(
            f"--recipe keep needs one kind of integers, and {name} has {form}, {other} {forms[other]}; {DEFAULT_WAY}"
        )
    if form.group is not None and _block(form.group) is None:
        raise InputError(
            f"--recipe keep cannot hold {name}: {form}, and blocks have {', '.join(map(str, BLOCKS))}; {DEFAULT_WAY}"
        )
    return Quantization(
        recipe=kept_recipe(form.bits, form.group),
        excluded=floats | dict(excluded or {}),
        rounded=KeptIntegers(checkpoint),
    )


def _forms(checkpoint: Checkpoint) -> tuple[dict[str, KeptForm], dict[str, str]]:
    """The form of each matrix that is quantized, by parameter; and why the others stay in float."""
    from glm_export.checkpoints.quantized.module import DequantizedTensor

    forms: dict[str, KeptForm] = {}
    floats: dict[str, str] = {}
    for rule in checkpoint.weight_map.rules:
        found = [checkpoint.sources.get(name) for name in rule.sources]
        quantized = [source for source in found if isinstance(source, DequantizedTensor)]
        if not quantized or rule.each:
            floats[rule.target] = "a float in the source" if not quantized else "experts are dequantized"
            continue
        for name, source in zip(rule.sources, found, strict=True):
            held = source.held() if isinstance(source, DequantizedTensor) else "is no longer what its source holds"
            if isinstance(held, str):
                raise InputError(f"--recipe keep cannot hold {name}, which {held}; {DEFAULT_WAY}")
            if forms.setdefault(rule.target, held) != held:
                raise InputError(f"--recipe keep cannot hold {name} beside {rule.sources[0]}: {held}; {DEFAULT_WAY}")
    return forms, {name: why for name, why in floats.items() if name.endswith(".weight") and "norm" not in name}


def _block(group: int | None) -> int | None:
    """The largest block that a group is whole ones of."""
    return next((block for block in reversed(BLOCKS) if group is not None and group % block == 0), None)


class KeptIntegers:
    """The integers of a quantized source, under the names of the reference's parameters."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._rules: dict[str, WeightRule] = {rule.target: rule for rule in checkpoint.weight_map.rules}

    def given(self, name: str, formats: WeightFormats, columns: int) -> PrequantizedWeight | None:  # noqa: ARG002 - the protocol's
        """One weight's integers and scales; None where it is float in the source."""
        from glm_export.calibration.formats import PrequantizedWeight
        from glm_export.checkpoints.quantized.module import DequantizedTensor

        rule = self._rules.get(name)
        found = [self._checkpoint.sources.get(source) for source in rule.sources] if rule is not None else []
        quantized = [source for source in found if isinstance(source, DequantizedTensor)]
        if rule is None or not quantized or len(quantized) < len(found):
            return None
        held = [source.integers() for source in quantized]
        # Layouts move rows, and scales go along with theirs.
        integers_NK = rule.layout([integers for integers, _ in held])
        scales_NG = rule.layout([scales for _, scales in held])
        group = integers_NK.shape[1] if scales_NG.shape[1] == 1 else -(-integers_NK.shape[1] // scales_NG.shape[1])
        blocks = _blocks_of(formats.decode, integers_NK.shape[1])
        block = formats.decode.scale_block or integers_NK.shape[1]
        repeats = max(1, -(-group // block))
        scales_NC = scales_NG.repeat_interleave(repeats, dim=1)[:, :blocks]
        return PrequantizedWeight(integers=integers_NK, scales=scales_NC.contiguous())


def _blocks_of(form: WeightFormat, columns: int) -> int:
    return -(-columns // (form.scale_block or columns))
