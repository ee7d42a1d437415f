"""Quality of programs that tell the logits of a row's last tokens alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm_export import api


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_texts_longer_than_what_is_told_of_them(layer_by_layer: bool, tmp_path: Path) -> None:
    """They are read token by token, as where the last token's logits are told."""
    kl = {}
    for logits in ("last", "recent"):
        program = api.export("demo", tmp_path / logits, dialect="ort", recipe="int8-token", logits=logits)
        report = api.quality(program, "demo", corpus="poems", max_samples=3, layer_by_layer=layer_by_layer).report
        kl[logits] = report.kl
    assert 0 < kl["recent"] == pytest.approx(kl["last"], rel=1e-3)
