"""Folders as people have them: logits equal those of transformers, peft or the publisher's code, in both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glm_export import api
from glm_export.sessions.session import Session
from tests.helpers.golden_data import BOUND, difference
from tests.helpers.golden_folders import folder, golden_of, logits_of

CAUSAL = ("tf5_glm4", "tf5_glm4_yarn", "moe_fused_tf5", "native_tied_cfg_lmhead_differs")
VISION = ("vl_glm4v", "vl_glm4v_moe", "vl_glm_ocr")


def in_each_runtime(name: str, tmp_path: Path) -> list[Session]:
    """The folder in PyTorch and, exported, in ONNX Runtime."""
    program = api.export(folder(name), tmp_path / name)
    return [api.load_session(folder(name)), api.load_session(program)]


@pytest.mark.parametrize("name", [*CAUSAL, *VISION])
def test_logits(name: str, tmp_path: Path) -> None:
    input_ids, logits = golden_of(name)
    for session in in_each_runtime(name, tmp_path):
        with session:
            found = logits_of(session, input_ids)
            assert difference(found, logits) <= BOUND
            assert np.array_equal(found.argmax(-1), logits.argmax(-1))
    assert np.abs(logits).max() > 2  # the bound is meant for logits of this scale
