"""Adapter folders: what they hold, which base they are of, and the base's tensors with them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from glm_export.checkpoints.adapters.lora import LoraMatrices, LoraSettings, read_settings
from glm_export.checkpoints.formats import open_weights
from glm_export.checkpoints.sources import StoredTensor, TensorSource
from glm_export.checkpoints.stored_names import without_wrappers
from glm_export.errors import SHOWN_CHARACTERS, CheckpointError, InputError, cut
from glm_export.model_folder import inside, read_json
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_formats import EMBEDDING
from glm_export.spec.weight_map import WeightMap

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
"""The first that is there is read, as PEFT does."""
PEFT_PREFIXES = ("base_model.model.", "base_model.")
# "….q_proj.lora_A.weight", with the adapter's name between in what trainers save themselves: "….lora_A.default.weight".
LORA = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)(?:\.(?!weight$|bias$)[^.]+)?"
    r"(?:\.(?P<end>weight|bias))?$"
)
SAVED_WHOLE = re.compile(r"\.(?:modules_to_save(?:\.[^.]+(?=\.))?|base_layer|original_module)(?=\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One adapter folder, opened; the change it makes is multiplied by ``weight``.

    ``lora``: by module. ``whole``: tensors that take the base's place (``modules_to_save``, trained biases).
    """

    folder: Path
    weight: float
    base: str
    settings: LoraSettings
    files: tuple[Path, ...]
    lora: Mapping[str, LoraMatrices]
    whole: Mapping[str, StoredTensor]

    def to_json(self) -> dict[str, Any]:
        """Name, base and weight, for a manifest."""
        return {"name": self.folder.absolute().name, "base": self.base, "weight": self.weight}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """A base's tensors with its adapters."""

    config: GlmConfig
    sources: dict[str, TensorSource]
    notes: tuple[str, ...] = field(default=())


def parse_adapter(text: str | Path | tuple[str | Path, float]) -> tuple[Path, float]:
    """A folder, and the weight its change is multiplied by: ``DIR`` or ``DIR=0.5``.

    Raises:
        InputError: the weight is no finite number.
    """
    if isinstance(text, tuple):
        folder, weight = Path(text[0]), float(text[1])
    elif Path(text).is_dir() or "=" not in str(text):
        folder, weight = Path(text), 1.0
    else:
        name, _, number = str(text).rpartition("=")
        try:
            folder, weight = Path(name), float(number)
        except ValueError:
            raise InputError(f"an adapter is DIR or DIR=WEIGHT, found {text}; {number!r} is no number") from None
    if not math.isfinite(weight):
        raise InputError(f"an adapter's weight is a finite number, found {weight}")
    return folder, weight


def open_adapter(folder: Path, weight: float, weight_map: WeightMap) -> Adapter:
    """Read an adapter's settings and map its tensors.

    Args:
        folder: holds ``adapter_config.json`` and the weights beside it.
        weight: the change is multiplied by it.
        weight_map: of the base, for its names.

    Raises:
        InputError: there is no such folder, or it holds no adapter.
        CheckpointError: it is damaged, of a kind that cannot be merged, or of another model.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} holds no {CONFIG}; give the folder that PEFT's save_pretrained wrote")
    values = read_json(folder, CONFIG)
    kind = cut(str(values.get("peft_type")), SHOWN_CHARACTERS)
    if kind.upper() != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter of type {kind}; LoRA (rsLoRA, DoRA) and P-Tuning v2 folders are supported. Merge "
            "it with PEFT's merge_and_unload() where it can be, and give the result"
        )
    settings = read_settings(values, folder / CONFIG)
    path = next((inside(folder, name) for name in WEIGHTS if inside(folder, name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds no {' or '.join(WEIGHTS)}; copy the adapter's weights in")
    lora, whole = _by_module(open_weights(path), path, weight_map)
    if not lora and not whole:
        raise CheckpointError(f"{path} holds no tensors of an adapter; save it again")
    return Adapter(
        folder=folder,
        weight=weight,
        base=str(values.get("base_model_name_or_path") or ""),
        settings=settings,
        files=(inside(folder, CONFIG), path),
        lora=lora,
        whole=whole,
    )


def _by_module(
    tensors: Mapping[str, Tensor], path: Path, weight_map: WeightMap
) -> tuple[dict[str, LoraMatrices], dict[str, StoredTensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for stored, tensor in tensors.items():
        plain = without_wrappers(stored)
        for prefix in PEFT_PREFIXES:
            plain = plain.removeprefix(prefix)
        match = LORA.match(plain)
        if match is None:
            name = weight_map.official(SAVED_WHOLE.sub("", plain))
            if ".original_module." not in plain:
                whole[name] = StoredTensor(path=path, stored=stored, tensor=tensor)
            continue
        module = weight_map.official(f"{SAVED_WHOLE.sub('', match['module'] + '.')}weight").removesuffix(".weight")
        part = match["part"] + (".bias" if match["end"] == "bias" else "")
        parts.setdefault(module, {})[part] = tensor
    return {module: LoraMatrices(module=module, tensors=held) for module, held in parts.items()}, whole


def adapted(
    config: GlmConfig, weight_map: WeightMap, sources: Mapping[str, TensorSource], adapters: Sequence[Adapter]
) -> Adapted:
    """The tensors with every adapter's change; changes of several add up, as PEFT's "cat" combination does.

    A tied head stays the base's where an adapter changes the embedding alone, as it does in PEFT unless it is merged.

    Raises:
        CheckpointError: an adapter is of another model, or two of them set the same tensor.
    """
    found, head = dict(sources), weight_map.head_copy
    touched = {name for adapter in adapters for name in _touched(adapter)}
    embedding = next(rule.sources[0] for rule in weight_map.rules if rule.target == EMBEDDING)
    notes: list[str] = []
    if config.tied_head and touched & {embedding, head}:
        if not head:
            raise CheckpointError(f"the adapter changes {embedding}, which is the head too, and cannot be untied")
        config, found = replace(config, tied_head=False), found | {head: found[embedding]}
        notes.append("the head is no longer tied: the adapter changes one of the two")
    _require_apart(adapters)
    for adapter in adapters:
        for name, tensor in adapter.whole.items():
            if name not in found:
                raise CheckpointError(
                    f"{adapter.folder} holds {name}, which the base does not have; the adapter is of another model"
                )
            found[name] = tensor
    for adapter in adapters:
        for matrices in adapter.lora.values():
            found |= matrices.changed(found, adapter.settings, adapter.weight)
        told = f" times {adapter.weight:g}" if adapter.weight != 1 else ""
        notes.append(
            f"{adapter.folder.absolute().name}: LoRA{told} merged into {len(adapter.lora)} weights"
            + (f", {len(adapter.whole)} tensors replaced" if adapter.whole else "")
        )
    return Adapted(config=config, sources=found, notes=tuple(notes))


def _touched(adapter: Adapter) -> Iterable[str]:
    yield from (f"{module}.weight" for module in adapter.lora)
    yield from adapter.whole


def _require_apart(adapters: Sequence[Adapter]) -> None:
    """Sums do not depend on the order; what is replaced or set to a magnitude does."""
    seen: dict[str, Path] = {}
    for adapter in adapters:
        fixed = set(adapter.whole)
        if adapter.weight != 1 and fixed:
            raise CheckpointError(
                f"{adapter.folder} replaces {min(fixed)}, which a weight of {adapter.weight:g} cannot be applied to; "
                "leave the weight out"
            )
        if adapter.settings.decomposed:
            fixed |= {f"{module}.weight" for module in adapter.lora}
        both = fixed & seen.keys()
        if both:
            name = min(both)
            raise CheckpointError(f"{seen[name]} and {adapter.folder} both set {name}; give one of them")
        seen |= dict.fromkeys(fixed, adapter.folder)
    for adapter in adapters:
        for module in adapter.lora:
            other = seen.get(f"{module}.weight", adapter.folder)
            if other != adapter.folder:
                raise CheckpointError(f"{other} sets {module}.weight, which {adapter.folder} changes; give one of them")
