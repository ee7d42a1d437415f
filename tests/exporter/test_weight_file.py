"""Streaming weights: blocks put together are the tensor; files written past the page cache are what was written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from glm_export.calibration.formats import pieces
from glm_export.calibration.formats.pieces import blocks
from glm_export.exporter import direct_file
from glm_export.exporter.direct_file import DirectFile
from glm_export.exporter.weight_layout import LARGE_ALIGNMENT, LARGE_BYTES, SMALL_ALIGNMENT, plan_weights
from glm_export.modeling import Decoder
from glm_export.spec.config import GlmConfig, RotaryConfig

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@given(
    rows=st.integers(1, 300), columns=st.integers(1, 300), source=DTYPES, target=DTYPES, transposed=st.booleans(),
    block=st.sampled_from([64, 1000, 1 << 22]),
)  # fmt: skip
@settings(max_examples=80)
def test_blocks_put_together_are_the_tensor(
    rows: int, columns: int, source: torch.dtype, target: torch.dtype, transposed: bool, block: int
) -> None:
    tensor = torch.randn(rows, columns).to(source)
    before = pieces.BLOCK_ELEMENTS
    pieces.BLOCK_ELEMENTS = block
    try:
        found = torch.cat([piece.clone().reshape(-1) for piece in blocks(tensor, target, transposed=transposed)])
    finally:
        pieces.BLOCK_ELEMENTS = before
    expected = (tensor.t() if transposed else tensor).contiguous().to(target).reshape(-1)
    assert torch.equal(found, expected)
    assert found.dtype == target


@pytest.mark.parametrize("transposed", [False, True])
def test_a_block_is_a_few_megabytes_however_large_the_weight(transposed: bool) -> None:
    """The weight is not touched beyond the one block: what is never written takes no memory."""
    weight = torch.empty(4096, 27_392, dtype=torch.bfloat16)
    step = next(blocks(weight, torch.float16, transposed=transposed))
    assert 0 < step.numel() <= pieces.BLOCK_ELEMENTS
    rows = pieces.row_blocks(weight)
    assert max(block.numel() for block in rows) <= pieces.BLOCK_ELEMENTS
    assert {tuple(block.shape)[1] for block in rows} == {27_392}


def test_layout_is_aligned_and_does_not_overlap() -> None:
    config = GlmConfig(
        family="chatglm2", vocab_size=5000, hidden_size=256, num_layers=2, num_heads=4, kv_heads=2, head_dim=64,
        ffn_size=300, max_positions=100, rotary=RotaryConfig(dim=32),
    )  # fmt: skip
    with torch.device("meta"):
        stored = plan_weights(Decoder(config).half())
    end = 0
    for entry in stored:
        assert entry.offset >= end
        assert entry.offset % (LARGE_ALIGNMENT if entry.length >= LARGE_BYTES else SMALL_ALIGNMENT) == 0
        end = entry.offset + entry.length
    by_name = {entry.name: entry for entry in stored}
    assert by_name["layers.0.mlp.down.weight"].shape == (300, 256)  # [in, out]
    assert by_name["embedding.weight"].shape == (5000, 256)
    assert {"cos", "sin"} < set(by_name)


@given(pieces=st.lists(st.binary(max_size=20_000), max_size=6), gap=st.integers(0, 5000))
@settings(max_examples=30)
def test_direct_file_holds_what_was_written(
    pieces: list[bytes], gap: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("direct") / "file"
    expected = b""
    with DirectFile(path, 1000) as file:
        for piece in pieces:
            file.write(memoryview(piece))
            expected += piece
            file.pad_to(file.position + gap)
            expected += bytes(gap)
            assert file.position == len(expected)
    assert path.read_bytes() == expected


def test_direct_file_over_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_file, "BLOCK_BYTES", 8192)
    content = torch.randint(0, 256, (100_001,), dtype=torch.uint8).numpy().tobytes()
    with DirectFile(tmp_path / "file", len(content)) as file:
        file.write(memoryview(content))
    assert (tmp_path / "file").read_bytes() == content


def test_file_systems_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = os.open

    def refuse_direct(path: Path, flags: int, mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse_direct)
    with DirectFile(tmp_path / "file", 3) as file:
        file.write(memoryview(b"abc"))
    assert (tmp_path / "file").read_bytes() == b"abc"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
@pytest.mark.parametrize("size", [10, 0], ids=["while it is made", "while it is written"])
def test_a_full_disk_leaves_no_file_open(size: int) -> None:
    before = os.listdir("/proc/self/fd")
    # Of no bytes nothing is reserved, which is how file systems behave that cannot.
    with pytest.raises(OSError, match=r"No space left|No such device"), DirectFile(Path("/dev/full"), size) as file:
        file.write(memoryview(b"x" * SMALL_ALIGNMENT))
    assert os.listdir("/proc/self/fd") == before
