"""P-Tuning v2: a trained prefix of every layer's keys and values, as the cache a batch begins with.

Shapes: P tokens of the prefix, L layers, N heads, K key-value heads, D head size, M hidden channels of the projection.

Source: ``PrefixEncoder`` and ``get_prompt`` of THUDM/chatglm-6b and chatglm2-6b, ``modeling_chatglm.py``; what is saved
beside a base: ``ptuning/trainer.py`` of THUDM/ChatGLM2-6B.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from glm_export.checkpoints.formats import open_weights
from glm_export.checkpoints.sources import StoredTensor, TensorSource
from glm_export.checkpoints.weight_files import weight_files
from glm_export.errors import CheckpointError, shown
from glm_export.graphs.patterns.rotary import rotary_embedding, rotary_tables, rotation
from glm_export.model_folder import inside, read_json
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_map import HeadwiseQkv

EMBEDDING = "embedding.weight"
PROJECTION = ("trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias")
# In a folder that holds the encoder alone names may begin at any of its modules.
STORED = re.compile(r"(?:(?:.*\.)?prefix_encoder\.)?(?P<part>embedding\.weight|trans\.[02]\.(?:weight|bias))$")
INSIDE = re.compile(r"(?:.*\.)?prefix_encoder\.(?P<part>.+)$")
KeyValue = tuple[Tensor, Tensor]
SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixEncoder:
    """What a prefix is computed from.

    ``sources``: its tensors by their names within the encoder. ``projected``: whether they go through two more layers.
    """

    folder: Path
    sources: Mapping[str, TensorSource]
    projected: bool

    @property
    def length(self) -> int:
        """P."""
        return self.sources[EMBEDDING].shape[0]

    @property
    def files(self) -> list[Path]:
        """Where it lies, and the config it was trained with where that is there; in name order."""
        config = self.folder / "config.json"
        return sorted({source.path for source in self.sources.values()} | ({config} if config.is_file() else set()))

    def problems(self, config: GlmConfig) -> str:
        """One line on tensors that are missing or of another model's size; nothing where they fit."""
        if not config.prefix_mask and config.prefix_length >= config.max_positions:
            return (
                f"the prefix in {self.folder} has {config.prefix_length} tokens, and with it the context has "
                f"{config.max_positions}: no text would fit; mend the context's length (seq_length) in config.json"
            )
        width = 2 * config.num_layers * config.kv_size
        expected: dict[str, tuple[int, ...]] = {EMBEDDING: (config.prefix_length, width)}
        if self.projected and PROJECTION[0] in self.sources:
            middle, entering = (*self.sources[PROJECTION[0]].shape, 0, 0)[:2]
            shapes = ((middle, entering), (middle,), (width, middle), (width,))
            expected = {EMBEDDING: (config.prefix_length, entering)} | dict(zip(PROJECTION, shapes, strict=True))
        elif self.projected:
            expected |= dict.fromkeys(PROJECTION, ())
        missing = [f"missing {name}" for name in expected if name not in self.sources]
        misfits = [
            f"{name} should be {list(shape)}, found {list(self.sources[name].shape)}"
            for name, shape in expected.items()
            if name in self.sources and self.sources[name].shape != shape
        ]
        misfits += [
            f"{name} should be floats, found {source.kind}"
            for name, source in self.sources.items()
            if not source.dtype.is_floating_point
        ]
        if not missing and not misfits:
            return ""
        return (
            f"the prefix encoder in {self.folder} does not fit: {'; '.join([*missing, *misfits])}; give the "
            "config.json it was trained with (pre_seq_len, prefix_projection), and the base it was trained on"
        )

    def initial_cache(self, config: GlmConfig) -> tuple[KeyValue, ...]:
        """Keys and values ``[1, K, P, D]`` of each layer, float32, as the reference decoder keeps them.

        Officially a prefix stands before all positions, its keys not turned. Causal families count positions on from
        it, so theirs are turned by its length: what a query sees of it depends on the difference alone. ChatGLM-6B's
        positions are given for each token and do not count it; its keys are dealt as its weights are.

        Raises:
            CheckpointError: tensors do not fit, or are not finite.
        """
        found = self.problems(config)
        if found:
            raise CheckpointError(found)
        packed_PX = self._packed()
        if not torch.isfinite(packed_PX).all():
            raise CheckpointError(f"the prefix encoder in {self.folder} makes NaN or infinity; its training diverged")
        # Key of the first layer, its value, key of the second …: [P, 2 L, K, D] -> [2 L, K, P, D].
        tensors = packed_PX.view(self.length, -1, config.kv_heads, config.head_dim).permute(1, 2, 0, 3)
        return tuple(
            (_kept_key(key_KPD, config)[None].contiguous(), value_KPD[None].contiguous())
            for key_KPD, value_KPD in zip(tensors[0::2], tensors[1::2], strict=True)
        )

    def _packed(self) -> Tensor:
        """``[P, 2 L K D]``, in float32."""
        rows = self.sources[EMBEDDING].read().float()
        if not self.projected:
            return rows
        weight_in, bias_in, weight_out, bias_out = (self.sources[name].read().float() for name in PROJECTION)
        return functional.linear(functional.linear(rows, weight_in, bias_in).tanh(), weight_out, bias_out)


def _kept_key(key_KPD: Tensor, config: GlmConfig) -> Tensor:
    rotary = config.rotary
    if rotary is None:
        return key_KPD
    if config.prefix_mask:
        heads_KDP = HeadwiseQkv(config.num_heads, axes=rotary.axes).deal(key_KPD.transpose(1, 2))
        return heads_KDP.transpose(1, 2)
    heads, length, _ = key_KPD.shape
    tables = rotary_tables(rotary, config.max_positions)
    places = torch.full((1, length), length)
    key_BSC = key_KPD.transpose(0, 1).reshape(1, length, -1)
    turned_BSC = rotary_embedding(key_BSC, rotation(*tables, places), num_heads=heads, interleaved=rotary.interleaved)
    return turned_BSC.view(length, heads, -1).transpose(0, 1)


def prefixed(config: GlmConfig, length: int) -> GlmConfig:
    """The same model with a prefix of so many tokens, in place of one it may have: they take nothing from the text."""
    positions = config.max_positions
    if not config.prefix_mask:
        positions += length - config.prefix_length
    return replace(config, prefix_length=length, max_positions=positions)


def prefix_inside(
    folder: Path, config: GlmConfig, sources: Mapping[str, TensorSource]
) -> tuple[PrefixEncoder | None, tuple[str, ...]]:
    """The prefix encoder among a whole model's tensors, and a line on what was made of it.

    As the publisher's class does, ``config.json`` decides: without ``pre_seq_len`` a prefix is not read, and without
    ``prefix_projection`` its two layers are not.

    Args:
        folder: of the model.
        config: says how long the prefix is.
        sources: of all tensors by official name.
    """
    parts = {match["part"]: source for name, source in sources.items() if (match := INSIDE.match(name))}
    if not parts:
        return None, ()
    if not config.prefix_length:
        return None, ("a P-Tuning prefix in the files is not read: config.json has no pre_seq_len",)
    projected = read_json(folder, "config.json").get("prefix_projection") is True
    return _encoder(folder, parts, projected=projected)


def missing_prefix(config: GlmConfig, prefix: PrefixEncoder | None) -> str:
    """One line where the model should have a prefix and no file holds one; the publisher's class would make one up."""
    if not config.prefix_length or prefix is not None:
        return ""
    return (
        f"config.json asks for a P-Tuning prefix (pre_seq_len is {config.prefix_length}), and no file holds a "
        "prefix_encoder: give its folder as an adapter (--adapter), or set pre_seq_len to null to have the base alone"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedPrefix:
    """A prefix from a folder of its own: the base's config with it, and a line on what was made of its files."""

    prefix: PrefixEncoder
    config: GlmConfig
    notes: tuple[str, ...] = ()


def open_prefix(folder: Path, config: GlmConfig) -> AddedPrefix:
    """Open a folder that holds a prefix encoder alone, to stand beside a base.

    Args:
        folder: holds weight files, and usually the ``config.json`` the prefix was trained with.
        config: of the base; a prefix of its own is replaced.

    Raises:
        CheckpointError: weight files are missing or damaged, hold something else too, or do not fit the base.
    """
    stored = {
        name: StoredTensor(path=path, stored=name, tensor=tensor)
        for path in weight_files(folder).files
        for name, tensor in open_weights(path).items()
    }
    parts = {match["part"]: source for name, source in stored.items() if (match := STORED.match(name))}
    strange = [name for name in stored if not STORED.match(name)]
    if strange or EMBEDDING not in parts:
        found = f"found {', '.join((strange or sorted(stored))[:SHOWN_NAMES])} among {len(stored)} tensors"
        raise CheckpointError(
            f"{folder} should hold a P-Tuning prefix encoder and nothing else, {found}; a whole model with its prefix "
            "is given as CHECKPOINT"
        )
    values = read_json(folder, "config.json") if inside(folder, "config.json").is_file() else {}
    if len(parts[EMBEDDING].shape) != 2:
        raise CheckpointError(
            f"{folder} should hold the prefix's embedding [P, channels], found {list(parts[EMBEDDING].shape)}; save "
            "the prefix again"
        )
    rows, said = parts[EMBEDDING].shape[0], values.get("pre_seq_len")
    if said is not None and said != rows:
        raise CheckpointError(
            f"{folder}: config.json has pre_seq_len = {shown(said)}, and {parts[EMBEDDING].stored} has {rows} rows; "
            "give the config.json it was trained with"
        )
    projected = values.get("prefix_projection")
    projected = PROJECTION[0] in parts if projected is None else projected is True
    encoder, notes = _encoder(folder, parts, projected=projected)
    with_it = prefixed(config, rows)
    found = encoder.problems(with_it)
    if found:
        raise CheckpointError(found)
    return AddedPrefix(prefix=encoder, config=with_it, notes=notes)


def _encoder(
    folder: Path, parts: Mapping[str, TensorSource], *, projected: bool
) -> tuple[PrefixEncoder, tuple[str, ...]]:
    encoder = PrefixEncoder(folder=folder, sources=parts, projected=projected)
    if not projected and any(name in parts for name in PROJECTION):
        return encoder, ("the prefix encoder's projection is not read: config.json has no prefix_projection",)
    return encoder, ()
