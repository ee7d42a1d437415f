"""A publisher's folder, read lazily: ``config.json`` and weights under their official names.

Weights are memory-mapped, from safetensors or from ``pytorch_model*.bin`` (``weights_only=True``: a file that
holds code is refused, never run). Only files the index names are opened; nothing is globbed, and no name may
lead out of the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from glm_export import families
from glm_export.checkpoints.formats import open_safetensors, open_torch
from glm_export.checkpoints.identity import CheckpointIdentity
from glm_export.errors import CheckpointError, ConfigError, InputError
from glm_export.model_folder import inside, read_json
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_map import WeightMap, WeightRule
from glm_export.tokenizers import Tokenizer, has_tokenizer, load_tokenizer

WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SHOWN_PROBLEMS = 20


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """Open weights of one model folder, its family and its tokenizer. Make it with :func:`open_checkpoint`."""

    folder: Path
    config: GlmConfig
    weight_map: WeightMap
    weight_of: dict[str, Path]
    family: ModuleType
    opened: dict[Path, dict[str, Tensor]] = field(default_factory=dict)
    _tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer, read when it is first asked for.

        Raises:
            CheckpointError: its file is missing or damaged.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.folder, self.config)
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder holds a file its family's tokenizer is read from."""
        return self._tokenizer is not None or has_tokenizer(self.folder, self.config)

    @property
    def identity(self) -> CheckpointIdentity:
        """What tells this checkpoint from another."""
        return CheckpointIdentity(config=self.folder / "config.json", weights=tuple(self.files))

    @property
    def files(self) -> list[Path]:
        """The weight files, each once, in name order."""
        return sorted(set(self.weight_of.values()))

    @property
    def source_bytes(self) -> int:
        """Size of all weight files."""
        return sum(path.stat().st_size for path in self.files)

    def tensor(self, name: str) -> Tensor:
        """One official tensor, memory-mapped.

        Raises:
            CheckpointError: its file is damaged or lacks it.
        """
        path = self.weight_of[name]
        if path not in self.opened:
            self.opened[path] = open_safetensors(path) if path.suffix == ".safetensors" else open_torch(path)
        for stored in (name, self.weight_map.prefix + name):
            if stored in self.opened[path]:
                return self.opened[path][stored]
        raise CheckpointError(f"the index puts {name} into {path.name}, which does not hold it; download both again")

    def parts(self, rule: WeightRule) -> Iterator[Tensor]:
        """One reference parameter, in slices of its leading axis where the rule stacks them.

        A part is a view of the mapped file unless its layout must copy.
        """
        step = rule.each or len(rule.sources)
        for start in range(0, len(rule.sources), step):
            yield rule.layout([self.tensor(source) for source in rule.sources[start : start + step]])

    def parameter(self, rule: WeightRule) -> Tensor:
        """One reference parameter whole."""
        parts = list(self.parts(rule))
        return torch.stack(parts) if rule.each else parts[0]

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every reference parameter, in the order of the rules."""
        for rule in self.weight_map.rules:
            yield rule.target, self.parameter(rule)

    def audit(self) -> None:
        """Compare the files with what the family expects, everything at once.

        Raises:
            CheckpointError: listing each missing, unexpected and mis-shaped tensor.
        """
        expected = {
            source: shape
            for rule in self.weight_map.rules
            for source, shape in zip(rule.sources, rule.shapes, strict=True)
        }
        problems = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in self.weight_of]
        for name in self.weight_of:
            if name in expected:
                found = tuple(self.tensor(name).shape)
                if found != expected[name]:
                    problems.append(f"{name} should be {list(expected[name])}, found {list(found)}")
                if not self.tensor(name).is_floating_point():
                    problems.append(f"{name} should be floating point, found {self.tensor(name).dtype}")
            elif not self.weight_map.ignores(name):
                problems.append(f"unexpected {name}")
        if problems:
            more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
            raise CheckpointError(
                f"{self.folder} does not fit family {self.config.family} ({len(problems)} problems): "
                + "; ".join(problems[:SHOWN_PROBLEMS])
                + more
            )

    def hashes(self, advance: Callable[[int], None] = lambda _: None) -> dict[str, str]:
        """sha256 of config and weight files, as hexadecimal, by file name.

        Args:
            advance: told the bytes read so far, for a progress bar.
        """
        return self.identity.hashes(advance)


def _weight_table(folder: Path) -> dict[str, Path]:
    """Official tensor name -> the file that holds it, from the index or the one file."""
    for name in WEIGHT_INDEXES:
        if inside(folder, name).is_file():
            index = read_json(folder, name).get("weight_map")
            if not isinstance(index, dict):
                raise CheckpointError(f"{folder / name} has no weight_map; download it again")
            table = {tensor: inside(folder, file) for tensor, file in index.items()}
            missing = sorted({path.name for path in table.values() if not path.is_file()})
            if missing:
                raise CheckpointError(
                    f"{folder} lacks {', '.join(missing)}, named in {name}; download the missing shards"
                )
            return table
    for name in WEIGHT_FILES:
        path = inside(folder, name)
        if path.is_file():
            tensors = open_safetensors(path) if path.suffix == ".safetensors" else open_torch(path)
            return dict.fromkeys(tensors, path)
    raise CheckpointError(f"{folder} holds no weights: expected one of {', '.join((*WEIGHT_INDEXES, *WEIGHT_FILES))}")


def open_checkpoint(folder: Path, family: str | None = None) -> Checkpoint:
    """Open a model folder in the publisher's layout; weights are read when asked for.

    Args:
        folder: holds ``config.json`` and the weight files.
        family: overrules what ``config.json`` says.

    Raises:
        InputError: no such folder.
        ConfigError: ``config.json`` is of no known GLM.
        CheckpointError: weight files are missing or damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give a model folder with config.json and weights, or 'demo'")
    values = read_json(folder, "config.json")
    if "model_type" not in values and "architectures" not in values:
        raise ConfigError(f"{folder / 'config.json'} names neither model_type nor architectures; it is no model config")
    config = families.read_config(values, family)
    module = families.load(config.family)
    weight_map = module.weight_map(config)
    weight_of = {name.removeprefix(weight_map.prefix): path for name, path in _weight_table(folder).items()}
    return Checkpoint(folder=folder, config=config, weight_map=weight_map, weight_of=weight_of, family=module)
