"""Which files of a folder hold its weights: the ones transformers reads, in its order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glm_export.errors import CheckpointError
from glm_export.model_folder import inside, read_json

WEIGHT_FORMS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The first that is there is read. Source: ``_get_resolved_checkpoint_files`` of transformers."""
WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
TRAINER_FILES = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "golden")
"""How files that no model is read from begin: a trainer's state, recorded numbers."""
SHOWN_FILES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """What is read, and what lies beside it.

    ``told_by`` is the name that decided: a whole file, or an index. ``indexed``: the tensors an index promises.
    """

    told_by: str
    files: tuple[Path, ...]
    unread: tuple[str, ...]
    indexed: frozenset[str] = frozenset()


def weight_files(folder: Path) -> WeightFiles:
    """Choose as transformers does: a whole file before an index, safetensors before ``.bin``.

    Raises:
        CheckpointError: there are no weights, a shard is missing, or a name or link leads out of the folder.
    """
    chosen = next((name for name in WEIGHT_FORMS if inside(folder, name).is_file()), None)
    if chosen is None:
        raise CheckpointError(_no_weights(folder))
    files, indexed = [inside(folder, chosen)], frozenset[str]()
    if chosen.endswith(".index.json"):
        files, indexed = _shards(folder, chosen)
    read = {chosen, *(path.name for path in files)}
    unread = tuple(name for name in _weight_like(folder) if name not in read)
    return WeightFiles(told_by=chosen, files=tuple(files), unread=unread, indexed=indexed)


def _shards(folder: Path, index: str) -> tuple[list[Path], frozenset[str]]:
    table = read_json(folder, index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise CheckpointError(f"{folder / index} has no weight_map of names to files; download it again")
    files = [inside(folder, file) for file in sorted(set(table.values()))]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        others = [name for name in WEIGHT_FORMS if name != index and (folder / name).is_file()]
        beside = f"; {' and '.join(others)} beside it is not read while the index is there" if others else ""
        raise CheckpointError(
            f"{folder} lacks {_listed(missing)}, named in {index}; download the missing shards{beside}"
        )
    return files, frozenset(table)


def _weight_like(folder: Path) -> list[str]:
    """Files that look like weights or their index, in name order."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if (path.suffix in WEIGHT_ENDINGS or path.name.endswith(".index.json"))
        and not path.name.startswith(TRAINER_FILES)
    )


def _no_weights(folder: Path) -> str:
    found = _weight_like(folder)
    told = f"{folder} holds no weights: expected one of {', '.join(WEIGHT_FORMS)}"
    if not found:
        return told + "; download the weights too"
    if any("-of-" in name for name in found):
        return f"{told}; found {_listed(found)}: shards are read by their index, download that too"
    return f"{told}; found {_listed(found)}: transformers reads none of these names, so rename the one that is meant"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else ""
    return ", ".join(names[:SHOWN_FILES]) + more
