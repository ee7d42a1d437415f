"""One call carried over to every kind of cache and back, without a model: nothing is lost, nothing changes place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from glm_export import families
from glm_export.errors import ConfigError
from glm_export.inputs.call_layout import CallLayout, run_rows_apart
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    WRITE_INDICES,
    Cache,
    Signature,
    decoder_signature,
    past_names,
    present_names,
)
from tests.helpers.tiny import tiny_values

Tensors = dict[str, NDArray[Any]]
LENGTH = 24
KINDS = [
    ("chatglm2", Cache.GROWING), ("chatglm2", Cache.SHARED), ("chatglm2", Cache.STATIC),
    ("glm_infilling", Cache.GROWING), ("glm_infilling", Cache.SHARED), ("glm_infilling", Cache.STATIC),
]  # fmt: skip


def config_of(family: str) -> GlmConfig:
    return families.read_config(tiny_values(family))


def signature_of(family: str, cache: Cache, cache_dtype: str | None = None) -> Signature:
    return decoder_signature(
        config_of(family), dtype="float32", logits="all", cache=cache, max_length=LENGTH, cache_dtype=cache_dtype
    )


def a_call(family: str) -> Tensors:
    """Two tokens a row on pasts of 8, 5 and 2 tokens; the pasts are 0 where there is padding."""
    config, random = config_of(family), np.random.default_rng(0)
    prompts = [Prompt(ids=tuple(range(3, 3 + length)), context_length=2, mask_position=1) for length in (10, 7, 4)]
    feeds = prefill_feeds(prompts, config).chunks(8)[-1]
    real = np.arange(8) >= np.array([0, 3, 6])[:, None]
    shape = (3, config.kv_heads, 8, config.head_dim)
    pasts = {
        name: np.where(real[:, None, :, None], random.standard_normal(shape), 0).astype(np.float32)
        for layer in range(config.num_layers)
        for name in past_names(layer)
    }
    return {**feeds.named(), **pasts}


def answer(given: Tensors, layout: CallLayout) -> Tensors:
    """What a program puts out whose keys are made of ids: each written where the layout says."""
    signature, ids_BS = layout.signature, given[INPUT_IDS]
    outputs: Tensors = {LOGITS: np.repeat(ids_BS[:, :, None], 5, axis=2).astype(np.float32)}
    for spec, present in zip((s for s in signature.inputs if s.is_cache), signature.outputs[1:], strict=True):
        past = given[spec.name]
        new = np.broadcast_to(
            ids_BS[:, None, :, None], (len(ids_BS), past.shape[1], ids_BS.shape[1], past.shape[3])
        ).astype(past.dtype)
        if signature.cache is Cache.GROWING:
            outputs[present.name] = np.concatenate([past, new], axis=2)
            continue
        whole = past.copy()
        for row, start in enumerate(_first_columns(given, signature)):
            whole[row, :, start : start + ids_BS.shape[1]] = new[row]
        outputs[present.name] = whole
    return outputs


def _first_columns(given: Tensors, signature: Signature) -> list[int]:
    if WRITE_INDICES in given:
        return given[WRITE_INDICES].tolist()
    if signature.cache is Cache.SHARED:
        return (given[ATTENTION_MASK].sum(axis=1) - given[INPUT_IDS].shape[1]).tolist()
    return given["position_ids"][:, 0].tolist()


@pytest.mark.parametrize(("family", "cache"), KINDS)
def test_there_and_back(family: str, cache: Cache) -> None:
    """Whatever the cache, the caller gets what a growing one gives: past tokens and new ones in canonical columns."""
    layout, tensors = CallLayout(signature=signature_of(family, cache)), a_call(family)
    canonical = CallLayout(signature=signature_of(family, Cache.GROWING))
    expected = answer(canonical.to_program(tensors), canonical)
    given = layout.to_program(tensors)
    assert list(given) == [spec.name for spec in layout.signature.inputs]
    found = layout.to_canonical(answer(given, layout), tensors)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert layout.is_canonical == (cache is Cache.GROWING)


@pytest.mark.parametrize("cache", [Cache.SHARED, Cache.STATIC])
def test_control_a_mask_of_other_lengths_moves_the_past(cache: Cache) -> None:
    """The mask alone says which columns are real: were a row's first token called padding, the rest would move."""
    layout, tensors = CallLayout(signature=signature_of("chatglm2", cache)), a_call("chatglm2")
    mask = tensors[ATTENTION_MASK].copy()
    mask[0, 0] = 0
    key = past_names(0)[0]
    before, after = (layout.to_program(tensors | given)[key] for given in ({}, {ATTENTION_MASK: mask}))
    assert not np.array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1:], after[1:])


@pytest.mark.parametrize(("family", "cache"), KINDS)
def test_what_a_call_is_given_besides_the_cache(family: str, cache: Cache) -> None:
    signature = signature_of(family, cache)
    prompts = [Prompt(ids=(5, 6, 7, 8), context_length=2), Prompt(ids=(5, 6, 7), context_length=1)]
    feeds = prefill_feeds(prompts, config_of(family), own_lengths=signature.own_lengths).next_step([1, 2], 20)
    given = CallLayout(signature=signature).inputs_without_cache(feeds)
    assert list(given) == [spec.name for spec in signature.inputs if not spec.is_cache]
    if family == "glm_infilling" and cache is not Cache.GROWING:
        # Columns behind a row's new token are hidden; a static cache's mask has a place for every one.
        assert given[ATTENTION_MASK].shape == (2, 1, 1, LENGTH if cache is Cache.STATIC else 5)
        assert given[ATTENTION_MASK].sum(axis=-1).ravel().tolist() == [5, 4]
        assert given[WRITE_INDICES].tolist() == [4, 3]


@pytest.mark.parametrize("cache", [Cache.SHARED, Cache.STATIC])
def test_rows_of_a_prefix_family_begin_at_column_0(cache: Cache) -> None:
    """Padding on the left is what no query sees, and goes; what a query sees of its row stays what it was."""
    tensors, signature = a_call("glm_infilling"), signature_of("glm_infilling", cache)
    given = CallLayout(signature=signature).to_program(tensors)
    assert given[WRITE_INDICES].tolist() == [8, 5, 2]
    for row, padding in enumerate((0, 3, 6)):
        seen, before = given[ATTENTION_MASK][row, 0], tensors[ATTENTION_MASK][row, 0, :, padding:]
        np.testing.assert_array_equal(seen[:, : before.shape[1]], before)
        assert not seen[:, before.shape[1] :].any()
        key = past_names(0)[0]
        np.testing.assert_array_equal(given[key][row, :, : 8 - padding], tensors[key][row, :, padding:])
    # The control: were a column of padding seen, it would be kept.
    mask = tensors[ATTENTION_MASK].copy()
    mask[2, 0, 0, 4] = True
    moved = CallLayout(signature=signature).to_program(tensors | {ATTENTION_MASK: mask})
    assert moved[WRITE_INDICES].tolist() == [8, 5, 4]


def test_rows_of_a_prefix_family_run_apart() -> None:
    """As GroupQueryAttention reads several tokens on a past."""
    tensors, layout = a_call("glm_infilling"), CallLayout(signature=signature_of("glm_infilling", Cache.SHARED))

    def run(call: Tensors) -> Tensors:
        assert len(call[INPUT_IDS]) == 1
        return layout.to_canonical(answer(layout.to_program(call), layout), call)

    together = layout.to_canonical(answer(layout.to_program(tensors), layout), tensors)
    for name, array in run_rows_apart(run, tensors, layout.signature).items():
        np.testing.assert_array_equal(array, together[name], err_msg=name)


def test_integers_come_and_go_as_floats() -> None:
    """Half a step is what rounding costs; a value that can be kept comes back as it went."""
    config = config_of("chatglm2")
    signature = signature_of("chatglm2", Cache.GROWING, cache_dtype="int8")
    scales = np.linspace(0.01, 0.03, 2 * config.num_layers, dtype=np.float32).reshape(-1, 2)
    layout, tensors = CallLayout(signature=signature, kv_scales=scales), a_call("chatglm2")
    assert not layout.is_canonical
    given, rounded = layout.to_program(tensors), layout.rounded_past(tensors)
    presents = {
        present: given[past]
        for layer in range(config.num_layers)
        for past, present in zip(past_names(layer), present_names(layer), strict=True)
    }
    back = layout.to_canonical({LOGITS: tensors[INPUT_IDS], **presents}, tensors)
    for layer, pair in enumerate(scales):
        for past, present, scale in zip(past_names(layer), present_names(layer), pair, strict=True):
            assert given[past].dtype == np.int8
            clipped = np.clip(tensors[past], -128 * scale, 127 * scale)
            assert 0 < np.abs(back[present] - clipped).max() <= scale * 0.501
            np.testing.assert_array_equal(back[present], rounded[past])
            np.testing.assert_array_equal(layout.to_program(rounded)[past], given[past])
    np.testing.assert_array_equal(given[INPUT_IDS], tensors[INPUT_IDS])
    # The control: with another layer's scales it is another cache.
    other = replace(layout, kv_scales=scales[::-1])
    assert not np.array_equal(other.to_program(tensors)[past_names(0)[0]], given[past_names(0)[0]])
    with pytest.raises(ConfigError, match="keeps integers, and no scales were given"):
        CallLayout(signature=signature)


@pytest.mark.parametrize("family", ["chatglm2", "chatglm", "glm_infilling", "glm4_moe"])
def test_a_signature_says_whether_its_mask_is_of_pairs(family: str) -> None:
    config = config_of(family)
    for cache in Cache:
        signature = decoder_signature(config, dtype="float32", logits="all", cache=cache, max_length=LENGTH)
        assert signature.prefix_mask == config.prefix_mask
        assert signature.cache is cache
        assert signature.own_lengths == (cache is not Cache.GROWING)
        assert signature.counts_positions == (cache is Cache.SHARED and not config.prefix_mask)
