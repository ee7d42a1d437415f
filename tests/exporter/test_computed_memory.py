"""Memory of weights that are worked out: counted in the plan, and before a reference is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.checkpoints.sources import PIECE_ELEMENTS
from glm_export.errors import EnvironmentMissingError
from glm_export.exporter.plan import WORKING_PIECES, plan_export
from glm_export.sessions import torch as torch_session
from glm_export.sessions.torch import copied_bytes, require_memory
from tests.helpers.golden_data import Golden
from tests.helpers.golden_folders import folder

PIECES = WORKING_PIECES * PIECE_ELEMENTS * 4


def test_the_plan_counts_pieces_and_copies(tmp_path: Path) -> None:
    """ChatGLM2 moves no rows; ChatGLM-6B's heads are dealt anew, a copy of ``[192, 64]``."""
    plain = plan_export(open_checkpoint(Golden("chatglm2").folder), tmp_path, "float16").memory_bytes
    int4 = open_checkpoint(folder("int4_chatglm2"))
    assert plan_export(int4, tmp_path, "float16").memory_bytes - plain <= PIECES
    dealt = plan_export(open_checkpoint(folder("int8_chatglm")), tmp_path, "float16").memory_bytes
    whole = plan_export(open_checkpoint(folder("ptuning_full_chatglm")), tmp_path, "float16").memory_bytes
    assert dealt - whole == PIECES + 2 * 192 * 64


def test_the_reference_counts_what_is_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, stored = open_checkpoint(folder("int4_chatglm2")), open_checkpoint(Golden("chatglm2").folder)
    matrices = sum(
        2 * source.shape[0] * source.shape[1] for source in checkpoint.sources.values() if "int4" in source.kind
    )
    assert copied_bytes(stored, "float16") == 0
    assert copied_bytes(checkpoint, "float16") == matrices
    assert copied_bytes(checkpoint, "float32") > 2 * matrices
    monkeypatch.setattr(torch_session, "available_memory", lambda: matrices)
    require_memory(checkpoint, "float16")
    with pytest.raises(EnvironmentMissingError, match="float16 takes less"):
        require_memory(checkpoint, "float32")
    with pytest.raises(EnvironmentMissingError, match="float16 reads the weights in place"):
        require_memory(stored, "float32")
    monkeypatch.setattr(torch_session, "available_memory", lambda: matrices - 1)
    with pytest.raises(EnvironmentMissingError, match="a machine with more"):
        require_memory(checkpoint, "float16")
