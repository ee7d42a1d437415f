"""Optimization profiles and memory: worked out from a signature and a few limits, before anything is built."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from glm_export import families
from glm_export.artifacts.program import WEIGHTS, OnnxProgram
from glm_export.engines.memory import BASE_HOST_BYTES, plan_memory
from glm_export.engines.profiles import ALIGNMENT_BYTES, profiles_of, resolve_limits
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.spec.config import GlmConfig
from glm_export.spec.optimization_profile import DECODE, PREFILL, Limits, OptimizationProfile, Shape
from glm_export.spec.signature import (
    ATTENTION_MASK,
    BATCH,
    INPUT_IDS,
    LOGITS_KINDS,
    PAST,
    POSITION_IDS,
    SEQUENCE,
    TOTAL,
    Cache,
    Signature,
    decoder_signature,
    past_names,
)
from tests.helpers.published_configs import PUBLISHED
from tests.helpers.tiny import tiny_values

KEY = past_names(0)[0]
CHATGLM2 = families.read_config(PUBLISHED["chatglm2-6b"][0])
TINY = {name: families.read_config(tiny_values(name)) for name in ("chatglm2", "chatglm", "glm_infilling")}
DiskUsage = namedtuple("DiskUsage", "total used free")


def static(config: GlmConfig, length: int, logits: str = "last", **options: Any) -> Signature:
    return decoder_signature(
        config, dtype="float16", logits=logits, cache=Cache.STATIC, max_length=length, **options
    )  # fmt: skip


def growing(config: GlmConfig, logits: str = "last") -> Signature:
    return decoder_signature(config, dtype="float16", logits=logits)


def settled(signature: Signature, positions: int = 32768, **limits: Any) -> Limits:
    return resolve_limits(signature, positions, **{"max_batch": 4} | limits)


# -- shapes --------------------------------------------------------------------------------------------


def sizes_at(signature: Signature, profile: OptimizationProfile, corner: int) -> dict[str, int]:
    """What each symbol is at a corner; every input must mean the same by it."""
    sizes: dict[str, int] = {}
    assert profile.shapes.keys() == {spec.name for spec in signature.inputs}
    for spec in signature.inputs:
        for dim, size in zip(spec.dims, profile.shapes[spec.name][corner], strict=True):
            assert sizes.setdefault(dim, size) == size if isinstance(dim, str) else dim == size, (spec.name, dim)
    return sizes


def never_less(smaller: Shape, larger: Shape) -> bool:
    return all(low <= high for low, high in zip(smaller, larger, strict=True))


@given(
    family=st.sampled_from(sorted(TINY)), cache=st.sampled_from([Cache.STATIC, Cache.GROWING]),
    logits=st.sampled_from(LOGITS_KINDS), context=st.integers(1, 5000), tokens=st.integers(1, 5000),
    rows=st.integers(1, 64), read=st.integers(1, 64),
)  # fmt: skip
def test_every_corner_is_a_call_that_can_be_made(
    family: str, cache: Cache, logits: str, context: int, tokens: int, rows: int, read: int
) -> None:
    config = TINY[family]
    signature = static(config, context, logits) if cache is Cache.STATIC else growing(config, logits)
    limits = Limits(
        max_batch=rows, max_context=context, prefill_tokens=min(tokens, context), prefill_batch=min(read, rows)
    )
    prefill, decode = profiles_of(signature, limits)
    assert (prefill.name, decode.name) == (PREFILL, DECODE)
    for profile in (prefill, decode):
        corners = [sizes_at(signature, profile, corner) for corner in range(3)]
        for sizes in corners:
            if cache is Cache.GROWING:
                assert sizes[PAST] + sizes[SEQUENCE] == sizes[TOTAL] <= context
            assert sizes[SEQUENCE] == 1 or profile is prefill
        for shapes in profile.shapes.values():
            least, usual, most = shapes
            assert never_less(least, usual)
            assert never_less(usual, most)
        assert [corners[0][name] for name in (BATCH, SEQUENCE)] == [1, 1]
        assert corners[2][BATCH] == (limits.prefill_batch if profile is prefill else rows)
        if cache is Cache.GROWING:
            assert corners[0][PAST] == 0
            assert corners[2][TOTAL] == context
    assert sizes_at(signature, prefill, 2)[SEQUENCE] == limits.prefill_tokens


def test_profiles_of_a_released_model() -> None:
    """ChatGLM2-6B with 8192 columns, four rows."""
    signature = static(CHATGLM2, 8192)
    prefill, decode = profiles_of(signature, settled(signature))
    assert prefill.shapes[INPUT_IDS] == ((1, 1), (1, 512), (1, 512))
    assert decode.shapes[INPUT_IDS] == ((1, 1), (1, 1), (4, 1))
    row = (2, 8192, 128)
    assert prefill.shapes[KEY] == ((1, *row), (1, *row), (1, *row))
    assert decode.shapes[KEY] == ((1, *row), (1, *row), (4, *row))
    prefill, decode = profiles_of(growing(CHATGLM2), settled(growing(CHATGLM2), max_context=4096))
    assert prefill.shapes[ATTENTION_MASK] == ((1, 1), (1, 512), (4, 4096))
    assert prefill.shapes[KEY] == ((1, 2, 0, 128), (1, 2, 0, 128), (4, 2, 3584, 128))
    assert decode.shapes[ATTENTION_MASK] == ((1, 1), (1, 2048), (4, 4096))
    assert decode.shapes[KEY] == ((1, 2, 0, 128), (1, 2, 2047, 128), (4, 2, 4095, 128))


def test_profiles_of_a_prefix_family() -> None:
    """The mask says who sees whom, two positions a token; the context is read at once, so all of it must fit."""
    config = TINY["chatglm"]
    signature = static(config, 256)
    prefill, decode = profiles_of(signature, settled(signature))
    assert prefill.shapes[ATTENTION_MASK] == ((1, 1, 1, 256), (1, 1, 256, 256), (1, 1, 256, 256))
    assert prefill.shapes[POSITION_IDS] == ((1, 2, 1), (1, 2, 256), (1, 2, 256))
    assert decode.shapes[ATTENTION_MASK][2] == (4, 1, 1, 256)
    prefill, _ = profiles_of(growing(config), settled(growing(config), 256))
    assert prefill.shapes[ATTENTION_MASK] == ((1, 1, 1, 1), (1, 1, 128, 128), (4, 1, 128, 256))


# -- limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "asked", "expected"),
    [
        (static(CHATGLM2, 8192), {}, (4, 8192, 512, 1)),
        (static(CHATGLM2, 8192), {"max_batch": 1}, (1, 8192, 512, 1)),
        (static(CHATGLM2, 8192), {"prefill_batch": 4, "prefill_tokens": 8192}, (4, 8192, 8192, 4)),
        (static(CHATGLM2, 256), {"max_context": 256}, (4, 256, 256, 1)),
        (static(TINY["chatglm"], 2048), {}, (4, 2048, 2048, 1)),
        (growing(CHATGLM2), {}, (4, 32768, 512, 4)),
        (growing(CHATGLM2), {"max_context": 301}, (4, 301, 151, 4)),
        (growing(CHATGLM2), {"max_context": 1}, (4, 1, 1, 4)),
        (growing(TINY["chatglm"]), {"max_context": 2048}, (4, 2048, 1024, 4)),
    ],
)
def test_what_is_left_open_is_filled_in(
    signature: Signature, asked: dict[str, int], expected: tuple[int, int, int, int]
) -> None:
    limits = settled(signature, **asked)
    assert (limits.max_batch, limits.max_context, limits.prefill_tokens, limits.prefill_batch) == expected


@pytest.mark.parametrize(
    ("signature", "asked", "message"),
    [
        (static(CHATGLM2, 8192), {"max_context": 4096}, r"--max-context is 4096.* holds 8192.*another --max-length"),
        (static(CHATGLM2, 8192), {"max_context": 0}, r"--max-context is 0.* holds 8192"),
        (static(CHATGLM2, 8192), {"prefill_tokens": 8193}, "--prefill-tokens 8193 exceeds --max-context 8192"),
        (static(CHATGLM2, 8192), {"prefill_tokens": 0}, "--prefill-tokens must be at least 1, found 0"),
        (static(CHATGLM2, 8192), {"prefill_batch": 5}, "--prefill-batch 5 exceeds --max-batch 4"),
        (static(CHATGLM2, 8192), {"prefill_batch": 0}, "--prefill-batch must be at least 1, found 0"),
        (static(CHATGLM2, 8192), {"max_batch": 0}, "--max-batch must be at least 1, found 0"),
        (growing(CHATGLM2), {"max_context": 32769}, r"--max-context is 32769.* holds 32768 tokens; ask for less"),
        (growing(CHATGLM2), {"max_context": 0}, "--max-context must be at least 1, found 0"),
        (growing(CHATGLM2), {"max_context": -3}, "--max-context must be at least 1, found -3"),
        (growing(CHATGLM2), {"prefill_batch": 1}, r"--prefill-batch is --max-batch \(4\) where the cache grows"),
        (growing(CHATGLM2), {"max_context": 100, "prefill_tokens": 101}, "--prefill-tokens 101 exceeds --max-context"),
    ],
)
def test_limits_that_cannot_be(signature: Signature, asked: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        settled(signature, **asked)
    assert raised.value.exit_code == 2


@given(length=st.integers(1, 2048), family=st.sampled_from(sorted(TINY)), rows=st.integers(2, 9), data=st.data())
def test_rows_begin_where_tensorrt_takes_an_address(length: int, family: str, rows: int, data: st.DataObject) -> None:
    """Where rows are read one after another; read together they are one buffer, of any length."""
    config, read = TINY[family], data.draw(st.integers(1, rows))
    signature = static(config, length)
    row = config.kv_heads * length * config.head_dim * 2
    if row % ALIGNMENT_BYTES and read < rows:
        with pytest.raises(InputError, match=rf"past_key_values\.0\.key .* takes {row} bytes.* rounder --max-length"):
            settled(signature, max_batch=rows, prefill_batch=read)
    else:
        assert settled(signature, max_batch=rows, prefill_batch=read).prefill_batch == read


# -- memory --------------------------------------------------------------------------------------------


def program_of(folder: Path, signature: Signature, weights: int = 0, parameters: int = 0) -> OnnxProgram:
    """A program of which nothing but the size and the number of its weights is there."""
    with (folder / WEIGHTS).open("wb") as file:
        file.truncate(weights)
    return OnnxProgram(
        folder=folder, config=CHATGLM2, signature=signature, dialect="tensorrt", dtype="float16", logits="last",
        manifest={"parameters": parameters},
    )  # fmt: skip


def test_memory_is_what_one_counts_by_hand(tmp_path: Path) -> None:
    """ChatGLM2-6B: 28 layers, 2 shared heads of 128 channels, in float16: 28 KiB a token."""
    signature = static(CHATGLM2, 8192)
    limits = settled(signature)
    memory = plan_memory(program_of(tmp_path, signature, 1_000_000), limits, tmp_path / "engine", None)
    assert memory.cache_row == 28 * 2 * 2 * 128 * 2 * 8192 == 234_881_024
    assert memory.cache == 939_524_096
    assert memory.logits == 4 * 65024 * 2
    assert memory.weights == 1_000_000
    for parameters, ratio in ((500_000, 1.5), (1_000_000, 1.5), (2_000_000, 2.6)):  # float16, int8, int4
        of_bits = program_of(tmp_path, signature, 1_000_000, parameters)
        assert plan_memory(of_bits, limits, tmp_path / "engine", None).host == BASE_HOST_BYTES + int(ratio * 1_000_000)
    assert memory.workspace is None
    assert memory.to_json()["cache_row"] == 234_881_024
    grown = growing(CHATGLM2)
    planned = plan_memory(program_of(tmp_path, grown), settled(grown, max_context=8192), tmp_path / "engine", 7)
    assert (planned.cache_row, planned.cache, planned.workspace) == (234_881_024, 939_524_096, 7)
    every = static(CHATGLM2, 8192, "all", cache_dtype="int8")
    planned = plan_memory(program_of(tmp_path, every), settled(every), tmp_path / "engine", None)
    assert planned.cache_row == 234_881_024 // 2
    assert planned.logits == 512 * 65024 * 2


def test_a_disk_too_small_is_found_before_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> DiskUsage:
        asked.append(Path(path))
        return DiskUsage(10**10, 10**10 - free, free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    signature = static(CHATGLM2, 8192)
    program, out = program_of(tmp_path, signature, 2_500_000_000), tmp_path / "not" / "yet" / "engine"
    free = 2_500_000_000
    assert plan_memory(program, settled(signature), out, None).free_disk == free
    free -= 10_000_000
    with pytest.raises(EnvironmentMissingError, match=r"about 2\.50 GB.* has 2\.49 GB free.* another --out") as raised:
        plan_memory(program, settled(signature), out, None)
    assert raised.value.exit_code == 3
    assert asked == [tmp_path, tmp_path]
