"""A publisher's folder, read lazily: ``config.json`` and weights under their official names.

Weights are memory-mapped, from safetensors or from ``pytorch_model*.bin`` (``weights_only=True``: a file that
holds code is refused, never run). Files are those transformers reads (``weight_files.py``), and no name may lead out
of the folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from glm_export import families
from glm_export.checkpoints.adapters.open import CONFIG as ADAPTER_CONFIG, Adapter, adapted, open_adapter, parse_adapter
from glm_export.checkpoints.audit import problems
from glm_export.checkpoints.folder_files import folder_files, with_generation_config
from glm_export.checkpoints.formats import is_mappable, open_weights
from glm_export.checkpoints.identity import CheckpointIdentity, FileStamp, require_unchanged
from glm_export.checkpoints.prefix import KeyValue, PrefixEncoder, missing_prefix, open_prefix, prefix_inside
from glm_export.checkpoints.quantized.find import find_quantized
from glm_export.checkpoints.sources import TensorSource
from glm_export.checkpoints.stored_names import official_names
from glm_export.checkpoints.ties import settle_ties
from glm_export.checkpoints.weight_files import WEIGHT_FORMS, WeightFiles, weight_files
from glm_export.errors import CheckpointError, ConfigError, InputError, message
from glm_export.model_folder import read_json
from glm_export.spec.config import GlmConfig
from glm_export.spec.summary import Summarized
from glm_export.spec.weight_map import WeightMap, WeightRule
from glm_export.tokenizers import Tokenizer, has_tokenizer, load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, repr=False)
class Checkpoint(Summarized):
    """Open weights of one model folder, its family and its tokenizer. Make it with :func:`open_checkpoint`.

    ``sources``: where each official tensor comes from. ``read``: which files were chosen, and what lies beside them
    unread. ``prefix``: of P-Tuning. ``notes``: a line for each thing that was made of the folder and that its files do
    not say outright. ``stamps``: of its files, taken before they were opened.
    """

    folder: Path
    config: GlmConfig
    weight_map: WeightMap
    family: ModuleType
    read: WeightFiles
    sources: dict[str, TensorSource]
    adapters: tuple[Adapter, ...] = ()
    prefix: PrefixEncoder | None = None
    notes: tuple[str, ...] = ()
    stamps: Mapping[Path, FileStamp] = field(default_factory=dict)
    _tokenizer: Tokenizer | None = None

    def summary(self) -> dict[str, str]:
        """Which model it is, and how large."""
        told = {
            "folder": str(self.folder),
            "family": self.config.family,
            "layers": str(self.config.num_layers),
            "hidden size": f"{self.config.hidden_size:,}",
            "vocabulary": f"{self.config.vocab_size:,}",
            "context": f"{self.config.text_positions:,} tokens",
        }
        return told | ({"adapters": str(len(self.adapters))} if self.adapters else {})

    def require_unchanged(self) -> None:
        """See, once all of it is read, that its files are still those that were opened.

        Raises:
            CheckpointError: one was written to, replaced or removed meanwhile.
        """
        require_unchanged(self.stamps)

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
        beside = tuple(path for adapter in self.adapters for path in adapter.files)
        weights = tuple(adapter.weight for adapter in self.adapters)
        if self._has_prefix_beside and self.prefix is not None:
            beside, weights = (*beside, *self.prefix.files), (*weights, 1.0)
        return CheckpointIdentity(
            config=self.folder / "config.json", weights=tuple(self.files), adapters=beside, adapter_weights=weights
        )

    @property
    def files(self) -> list[Path]:
        """The weight files that are read, in name order."""
        return sorted(self.read.files)

    @property
    def folders(self) -> list[Path]:
        """Every folder that is read: the model's, and those of what was trained on top of it."""
        beside = {path.parent for path in self.identity.adapters}
        return [self.folder, *sorted(beside)]

    @property
    def source_bytes(self) -> int:
        """Size of all weight files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def resident_bytes(self) -> int:
        """Memory taken by weight files that cannot be mapped, for as long as the checkpoint is open."""
        return sum(path.stat().st_size for path in self.files if not is_mappable(path))

    @property
    def weight_of(self) -> dict[str, Path]:
        """Official tensor name -> the file that holds it, or most of it."""
        return {name: source.path for name, source in self.sources.items()}

    @property
    def initial_cache(self) -> tuple[KeyValue, ...] | None:
        """Keys and values every row begins with, ``[1, K, P, D]`` float32 by layer; None where there is no prefix.

        Raises:
            CheckpointError: there should be one, and none is stored; or its tensors do not fit.
        """
        lacking = missing_prefix(self.config, self.prefix)
        if lacking:
            raise CheckpointError(lacking)
        return None if self.prefix is None else self.prefix.initial_cache(self.config)

    @property
    def added(self) -> list[dict[str, Any]]:
        """What was merged or begins every cache, and lies in a folder of its own: name, base and weight of each."""
        records = [adapter.to_json() for adapter in self.adapters]
        if self._has_prefix_beside and self.prefix is not None:
            records.append({"name": self.prefix.folder.absolute().name, "base": "", "weight": 1.0})
        return records

    @property
    def _has_prefix_beside(self) -> bool:
        return self.prefix is not None and self.prefix.folder != self.folder

    def tensor(self, name: str, dtype: torch.dtype | None = None, *, spooled: bool = False) -> Tensor:
        """One official tensor: memory-mapped where it is stored as it is, else computed in float32.

        Args:
            name: its official name.
            dtype: what a computed one is rounded to, None leaves it; a mapped one stays what it is.
            spooled: a large computed one lies in a temporary file: for one that is read and let go.

        Raises:
            CheckpointError: no file holds it.
        """
        source = self.sources.get(name)
        if source is None:
            promised = name in self.read.indexed
            told = f"{self.read.told_by} promises {name}, but no shard" if promised else f"{name} is missing: no file"
            raise CheckpointError(f"{told} in {self.folder} holds it; download the weights again")
        return source.read(dtype, spooled=spooled)

    def parts(self, rule: WeightRule, dtype: torch.dtype | None = None, *, spooled: bool = False) -> Iterator[Tensor]:
        """One reference parameter, in slices of its leading axis where the rule stacks them.

        A part is a view of the mapped file unless its layout must copy, or it is computed (see :meth:`tensor`).
        """
        step = rule.each or len(rule.sources)
        for start in range(0, len(rule.sources), step):
            yield rule.layout(
                [self.tensor(source, dtype, spooled=spooled) for source in rule.sources[start : start + step]]
            )

    def parameter(self, rule: WeightRule, dtype: torch.dtype | None = None) -> Tensor:
        """One reference parameter whole."""
        parts = list(self.parts(rule, dtype))
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
        found = problems(self) or missing_prefix(self.config, self.prefix)
        if not found and self.prefix is not None:
            found = self.prefix.problems(self.config)
        if found:
            raise CheckpointError(found)

    def hashes(self, advance: Callable[[int], None] = lambda _: None) -> dict[str, str]:
        """sha256 of config and weight files, as hexadecimal, by file name.

        Args:
            advance: told the bytes read so far, for a progress bar.
        """
        return self.identity.hashes(advance)


def _prefix_folder(given: Sequence[tuple[Path, float]]) -> Path | None:
    """The P-Tuning folder among adapters: one without PEFT's config.

    Raises:
        InputError: there are several, or it has a weight.
    """
    signs = ("config.json", *WEIGHT_FORMS)
    found = [
        (path, weight)
        for path, weight in given
        if not (path / ADAPTER_CONFIG).is_file() and any((path / name).is_file() for name in signs)
    ]
    if not found:
        return None
    path, weight = found[0]
    if len(found) > 1:
        raise InputError(f"{path} and {found[1][0]} are both P-Tuning prefixes, and a cache begins with one; give one")
    if weight != 1:
        raise InputError(f"{path} is a P-Tuning prefix, which no weight applies to; leave it out")
    return path


def open_checkpoint(
    folder: Path, family: str | None = None, adapters: Sequence[str | Path | tuple[str | Path, float]] = ()
) -> Checkpoint:
    """Open a model folder in the publisher's layout; weights are read when asked for.

    Args:
        folder: holds ``config.json`` and the weight files.
        family: overrules what ``config.json`` says.
        adapters: folders that PEFT saved, each alone, as ``DIR=WEIGHT`` or with its weight beside it; and at most one
            that holds a P-Tuning prefix.

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
    config = families.read_config(with_generation_config(folder, values), family, folder_files(folder))
    module = families.load(config.family)
    read = weight_files(folder)
    stamps = {path: FileStamp.of(path) for path in (folder / "config.json", *read.files)}
    names = official_names({path: open_weights(path) for path in read.files}, module.weight_map(config))
    found = find_quantized(names.tensors, module.weight_map(config), folder, values)
    tied = settle_ties(config, module.weight_map(config), found.sources)
    given = [parse_adapter(adapter) for adapter in adapters]
    beside = _prefix_folder(given)
    opened = [open_adapter(*each, module.weight_map(tied.config)) for each in given if each[0] != beside]
    changed = adapted(tied.config, module.weight_map(tied.config), tied.sources, opened)
    prefix, told = prefix_inside(folder, changed.config, changed.sources)
    settled = changed.config
    if beside is not None:
        added = open_prefix(beside, settled)
        prefix, settled, told = added.prefix, added.config, added.notes
    beside_it = [path for adapter in opened for path in adapter.files]
    beside_it += prefix.files if beside is not None and prefix is not None else []
    checkpoint = Checkpoint(
        folder=folder,
        config=settled,
        weight_map=module.weight_map(settled),
        family=module,
        read=read,
        sources=changed.sources,
        adapters=tuple(opened),
        prefix=prefix,
        notes=tuple(map(message, (*config.notes, *names.notes, *found.notes, *tied.notes, *changed.notes, *told))),
        stamps=stamps | {path: FileStamp.of(path) for path in beside_it},
    )
    _log_opened(checkpoint)
    return checkpoint


def _log_opened(checkpoint: Checkpoint) -> None:
    config, files = checkpoint.config, checkpoint.files
    logger.info(
        "%s: family %s, %d layers, %d bytes of weights in %d files, by %s; stored in %s",
        checkpoint.folder,
        config.family,
        config.num_layers,
        checkpoint.source_bytes,
        len(files),
        checkpoint.read.told_by,
        config.stored_dtype,
    )
    for path in files:
        logger.debug("%s: %d bytes, %s", path, path.stat().st_size, "mapped" if is_mappable(path) else "read whole")
    for note in checkpoint.notes:
        logger.info("%s: %s", checkpoint.folder, note)
