"""Folders as people have them, with the logits of code that is not ours; see ``tests/golden/README.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from glm_export.inputs.feeds import Feeds
from glm_export.sessions.session import Session
from tests.helpers.golden_data import GOLDEN

FOLDERS = GOLDEN / "folders"


def golden_of(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """``input_ids [B, S]`` and float32 ``logits [B, S, V]`` of a folder."""
    tensors = load_file(FOLDERS / name / "golden.safetensors")
    return tensors["input_ids"].astype(np.int64), tensors["logits"]


def logits_of(session: Session, input_ids: NDArray[Any], past: int = 0) -> NDArray[Any]:
    """Logits of a causal model that reads the tokens after ``past`` others it has read."""
    rows, columns = input_ids.shape
    positions = np.broadcast_to(past + np.arange(columns), (rows, columns))
    mask = np.ones((rows, past + columns), np.int64)
    return session.prefill(Feeds(input_ids=input_ids, attention_mask=mask, position_ids=positions))


def folder(name: str) -> Path:
    """Where it lies."""
    return FOLDERS / name
