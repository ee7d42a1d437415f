"""Names in files become official names: what wrappers, trainers and later transformers put around them is taken off."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from glm_export.checkpoints.sources import StoredTensor
from glm_export.errors import CheckpointError
from glm_export.spec.weight_map import WeightMap

WRAPPER_PARTS = ("_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")
"""Parts of a name that torch's own wrappers add, wherever a module was wrapped; no model has modules of that name."""
MOST_PREFIX_PARTS = 4
# transformers 5 packs a layer's experts: gate_up_proj [E, 2 I, H] and down_proj [E, H, I].
PACKED = re.compile(r"(?P<experts>.+\.experts)\.(?P<what>gate_up_proj|down_proj)$")

Opened = Mapping[Path, Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class StoredNames:
    """Official name -> the stored tensor, and a line for each thing that was taken off."""

    tensors: dict[str, StoredTensor]
    notes: tuple[str, ...]


def official_names(opened: Opened, weight_map: WeightMap) -> StoredNames:
    """Find the official name of every stored tensor.

    A name two shards hold is read from the later one, as transformers does.

    Args:
        opened: the files in name order, each with its tensors.
        weight_map: which names are expected.

    Raises:
        CheckpointError: two stored names mean the same tensor, and differ.
    """
    homes = {stored: path for path, tensors in opened.items() for stored in tensors}
    unwrapped = {stored: without_wrappers(stored) for stored in homes}
    notes = ["names of torch's wrappers taken off"] if any(a != b for a, b in unwrapped.items()) else []
    rename, note = _best_rename(list(unwrapped.values()), weight_map)
    tensors: dict[str, StoredTensor] = {}
    for stored, plain in unwrapped.items():
        name, path = rename(plain), homes[stored]
        found = StoredTensor(path=path, stored=stored, tensor=opened[path][stored])
        if name in tensors:
            _require_equal(name, tensors[name], found)
        tensors[name] = found
    return StoredNames(_without_packing(tensors, weight_map), (*notes, *note))


def without_wrappers(name: str) -> str:
    """The name without the parts that torch's own wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS)


def _best_rename(names: list[str], weight_map: WeightMap) -> tuple[Callable[[str], str], list[str]]:
    """Of the ways to read the names, the one that most expected names come out of; the plainest where several do."""
    expected = weight_map.expected
    ways = list(_ways(names, weight_map, expected.keys()))
    hits = [len({rename(name) for name in names} & expected.keys()) for rename, _ in ways]
    return ways[hits.index(max(hits))]


def _ways(
    names: list[str], weight_map: WeightMap, expected: Set[str]
) -> Iterator[tuple[Callable[[str], str], list[str]]]:
    base, modules = weight_map.base_prefix, {name.rpartition(".")[0] for name in expected}

    for prefix in _common_prefixes(names):
        taken = [f"the prefix {prefix!r} of every name taken off"] if prefix else []

        def plain(name: str, prefix: str = prefix) -> str:
            return weight_map.renamed(name.removeprefix(prefix))

        def based(name: str, plain: Callable[[str], str] = plain) -> str:
            full = base + plain(name)
            # What stands for a quantized weight has a name longer than its layer's.
            known = full in expected or any(module in modules for module in _above(full))
            return full if known or weight_map.ignores(full) else plain(name)

        yield plain, taken
        if base:
            yield based, [*taken, f"the prefix {base!r} put before names, which the file leaves out"]


def _above(name: str) -> Iterator[str]:
    """The modules a tensor is in, innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """``""``, then what all names begin with, part by part, longer and longer."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns)]
    return [
        ".".join((*common[:count], "")) if count else "" for count in range(min(len(common), MOST_PREFIX_PARTS) + 1)
    ]


def _without_packing(tensors: dict[str, StoredTensor], weight_map: WeightMap) -> dict[str, StoredTensor]:
    """One tensor for each expert's matrices, where a family expects them one by one."""
    expected = weight_map.expected
    result: dict[str, StoredTensor] = {}
    for name, found in tensors.items():
        match = PACKED.match(name)
        if match is None or f"{match['experts']}.0.down_proj.weight" not in expected:
            result[name] = found
            continue
        if found.tensor.dim() != 3:
            raise CheckpointError(
                f"{found.stored} in {found.path.name} should hold a layer's experts [experts, rows, columns], found "
                f"{list(found.shape)}"
            )
        half = found.shape[1] // 2
        parts: dict[str, slice] = {"down_proj": slice(None)}
        if match["what"] == "gate_up_proj":
            parts = {"gate_proj": slice(0, half), "up_proj": slice(half, None)}
        for expert, matrix in enumerate(found.tensor):
            for part, rows in parts.items():
                full = f"{match['experts']}.{expert}.{part}.weight"
                result[full] = StoredTensor(path=found.path, stored=found.stored, tensor=matrix[rows])
    return result


def _require_equal(name: str, one: StoredTensor, other: StoredTensor) -> None:
    if one.shape != other.shape or not torch.equal(one.tensor, other.tensor):
        raise CheckpointError(
            f"{one.stored} ({one.path.name}) and {other.stored} ({other.path.name}) are both {name}, and differ; "
            "keep the one that is meant"
        )
