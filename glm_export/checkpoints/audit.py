"""Do a folder's tensors fit its family? Everything at once, with the step that mends what is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from glm_export.checkpoints.prefix import STORED
from glm_export.checkpoints.sources import TensorSource
from glm_export.errors import SHOWN_CHARACTERS, cut
from glm_export.spec.weight_formats import EMBEDDING, HEAD
from glm_export.spec.weight_map import Shape

if TYPE_CHECKING:
    from glm_export.checkpoints.checkpoint import Checkpoint

SHOWN_PROBLEMS = 6
SHOWN_UNEXPECTED = 4
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def problems(checkpoint: Checkpoint) -> str:
    """One line, or nothing: unexpected names, which are the clue; then what does not fit; then what is missing."""
    expected = checkpoint.weight_map.expected
    held = checkpoint.sources.keys()
    unexpected = [name for name in held if name not in expected and not checkpoint.weight_map.ignores(name)]
    missing = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in held]
    misfits = list(_misfits({name: checkpoint.sources[name] for name in held if name in expected}, expected))
    count = len(unexpected) + len(misfits) + len(missing)
    if not count:
        return ""
    strange = [f"unexpected {cut(name, SHOWN_CHARACTERS)}" for name in unexpected[:SHOWN_UNEXPECTED]]
    if len(unexpected) > SHOWN_UNEXPECTED:
        strange.append(f"{len(unexpected) - SHOWN_UNEXPECTED} more unexpected names")
    others = misfits + missing
    room = max(SHOWN_PROBLEMS - len(strange), 1)
    more = [f"and {len(others) - room} more"] if len(others) > room else []
    hints = list(_hints(checkpoint, unexpected))
    return (
        f"{checkpoint.folder} does not fit family {checkpoint.config.family} ({count} problems): "
        + "; ".join([*strange, *others[:room], *more])
        + "".join(f". {hint}" for hint in hints)
    )


def _misfits(sources: Mapping[str, TensorSource], expected: Mapping[str, Shape]) -> Iterable[str]:
    for name, source in sources.items():
        if source.shape != expected[name]:
            yield f"{name} should be {list(expected[name])}, found {list(source.shape)}"
        if source.dtype not in FLOATS:
            yield f"{name} should be {' or '.join(map(_plain, FLOATS))}, found {_plain(source.dtype)}"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _hints(checkpoint: Checkpoint, unexpected: list[str]) -> Iterable[str]:
    """The steps that mend what is known to happen."""
    if any(".lora_" in name for name in unexpected):
        yield "These are LoRA weights beside their base: merge them (PEFT: merge_and_unload) and save the model again"
    if checkpoint.sources and all(STORED.match(name) for name in checkpoint.sources):
        yield "It holds a P-Tuning prefix alone: give its base as CHECKPOINT, and this folder with --adapter"
    if any(name.split(".")[0] in ("score", "classifier") for name in unexpected):
        yield "This is a classifier; language models, with a head over the vocabulary, are what can be exported"
    sources = {rule.target: rule.sources[0] for rule in checkpoint.weight_map.rules}
    vocab, key = checkpoint.config.vocab_size, getattr(checkpoint.family, "VOCAB_KEY", "vocab_size")
    rows = {
        checkpoint.sources[name].shape[0]
        for name in {sources[EMBEDDING], sources[HEAD]}
        if name in checkpoint.sources and len(checkpoint.sources[name].shape) == 2
    }
    if len(rows) == 1 and rows != {vocab}:
        yield f"The vocabulary was resized: set {key} to {rows.pop()} in config.json (it says {vocab})"
    if sources[HEAD] not in checkpoint.sources and sources[EMBEDDING] in checkpoint.sources:
        yield (
            "Where the head was left out because it is the embedding, set tie_word_embeddings to true in config.json"
        )
