"""Is the head the embedding? The config says what was meant, the tensors what is so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from glm_export.checkpoints.sources import TensorSource, row_pieces
from glm_export.errors import CheckpointError
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_formats import EMBEDDING
from glm_export.spec.weight_map import WeightMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Ties:
    """The config with ``tied_head`` as the tensors have it, and the sources of the weights that are read."""

    config: GlmConfig
    sources: dict[str, TensorSource]
    notes: tuple[str, ...] = ()


def settle_ties(config: GlmConfig, weight_map: WeightMap, sources: Mapping[str, TensorSource]) -> Ties:
    """Read one of two equal tensors, whichever was saved; of two that differ each as what it is called.

    transformers 5 does not tie a head to an embedding it differs from. ChatGLM-6B's own code, which runs on
    transformers 4 alone, gives both the value it copies last, and so cannot say which was meant.

    Raises:
        CheckpointError: ChatGLM-6B's two differ and its config does not untie them.
    """
    copy, found = weight_map.head_copy, dict(sources)
    if not config.tied_head or not copy or copy not in found:
        return Ties(config=config, sources=found)
    embedding = next(rule.sources[0] for rule in weight_map.rules if rule.target == EMBEDDING)
    head = found.pop(copy)
    if embedding not in found:
        return Ties(
            config=config,
            sources=found | {embedding: head},
            notes=(f"{copy} read for {embedding}, to which it is tied",),
        )
    if _equal(found[embedding], head):
        return Ties(config=config, sources=found)
    if config.family == "chatglm":
        raise CheckpointError(
            f"{copy} and {embedding} differ, although tie_word_embeddings makes them one tensor; ChatGLM-6B's code "
            "takes either. Set tie_word_embeddings to false in config.json if both are meant, or delete the wrong one"
        )
    return Ties(
        config=replace(config, tied_head=False),
        sources=found | {copy: head},
        notes=(f"tie_word_embeddings is true, and the files hold a {copy} that differs from {embedding}: it is used",),
    )


def _equal(one: TensorSource, other: TensorSource) -> bool:
    if one.shape != other.shape:
        return False
    return all(torch.equal(one.rows(*piece), other.rows(*piece)) for piece in row_pieces(one.shape))
