"""Feeds of rows that come and go: as if the prompts had been such from the beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from glm_export import families
from glm_export.errors import InputError
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prefix_feeds import RightPaddedPrefixFeeds
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.spec.signature import WRITE_INDICES
from tests.helpers.tiny import tiny_values

PROMPTS = [
    Prompt(ids=(7, 8, 9, 10, 11, 12), context_length=4, mask_position=2),
    Prompt(ids=(20, 21, 22), context_length=1, mask_position=0),
    Prompt(ids=(30, 31, 32, 33, 34), context_length=3, mask_position=1),
]
PADDINGS = {
    "left": ("chatglm2", False), "right": ("chatglm2", True), "prefix": ("glm_infilling", False),
    "prefix, right": ("glm_infilling", True),
}  # fmt: skip
Pad = Callable[[list[Prompt]], Feeds]


@pytest.fixture(params=PADDINGS)
def pad(request: pytest.FixtureRequest) -> Pad:
    family, own_lengths = PADDINGS[request.param]
    config = families.read_config(tiny_values(family))
    return lambda prompts: prefill_feeds(prompts, config, own_lengths=own_lengths)


def cut(prompt: Prompt, length: int) -> Prompt:
    return replace(prompt, ids=prompt.ids[:length])


def assert_go_on_alike(found: Feeds, expected: Feeds) -> None:
    """Two steps on, every array a program is given is the same."""
    assert found.input_ids.shape == (expected.batch, 0)
    assert found.columns == expected.columns
    np.testing.assert_array_equal(found.row_lengths, expected.row_lengths)
    np.testing.assert_array_equal(found.tokens_before, expected.row_lengths)
    for ids in (range(50, 50 + expected.batch), range(60, 60 + expected.batch)):
        found, expected = found.next_step(list(ids), 200), expected.next_step(list(ids), 200)
        assert found.named().keys() == expected.named().keys()
        for name, array in expected.named().items():
            np.testing.assert_array_equal(found.named()[name], array, err_msg=name)
            assert found.named()[name].dtype == array.dtype


def test_rows_chosen(pad: Pad) -> None:
    feeds = pad(PROMPTS)
    for rows in ([0], [1], [2, 0], [1, 1, 2], [0, 1, 2]):
        assert_go_on_alike(feeds.select(rows), pad([PROMPTS[row] for row in rows]))
    assert_go_on_alike(feeds.leave({0}), pad(PROMPTS[1:]))
    assert_go_on_alike(feeds.copy_rows([1]), pad([*PROMPTS, PROMPTS[1]]))


def test_rows_that_join(pad: Pad) -> None:
    """Shorter and longer than those there are, and where there are none."""
    for first, second in (([0], [1, 2]), ([1], [0]), ([1, 2], [0])):
        left, right = ([PROMPTS[row] for row in rows] for rows in (first, second))
        assert_go_on_alike(pad(left).join(pad(right)), pad(left + right))
    assert_go_on_alike(pad(PROMPTS).leave([0, 1, 2]).join(pad(PROMPTS[:1])), pad(PROMPTS[:1]))


def test_rows_cut_back(pad: Pad) -> None:
    """Also after steps, the longest row among them."""
    for row, length in ((0, 4), (0, 6), (2, 3), (1, 1)):
        prompts = [cut(one, length) if index == row else one for index, one in enumerate(PROMPTS)]
        assert_go_on_alike(pad(PROMPTS).truncate(row, length), pad(prompts))
        later = pad(PROMPTS).next_step([1, 2, 3], 200).next_step([4, 5, 6], 200)
        grown = [replace(one, ids=(*one.ids, 1, 2)) for one in PROMPTS]
        expected = [cut(one, length) if index == row else one for index, one in enumerate(grown)]
        assert_go_on_alike(later.truncate(row, length), pad(expected))


def test_control_a_row_cut_elsewhere_goes_on_elsewhere(pad: Pad) -> None:
    with pytest.raises(AssertionError):
        assert_go_on_alike(pad(PROMPTS).truncate(0, 5), pad([cut(PROMPTS[0], 4), *PROMPTS[1:]]))
    with pytest.raises(AssertionError):
        assert_go_on_alike(pad(PROMPTS).select([0, 2]), pad(PROMPTS[:2]))


def test_what_is_left_of_a_prompt(pad: Pad) -> None:
    """The last piece of two, whatever the padding."""
    feeds = pad(PROMPTS[:1])
    rest = feeds.after(4)
    expected = feeds.chunks(4)[1]
    for name, array in expected.named().items():
        np.testing.assert_array_equal(rest.named()[name], array)
    assert rest.tokens_before.tolist() == [4]
    with pytest.raises(InputError, match="6 of 6 tokens are given"):
        feeds.after(6)


def test_what_cannot_be(pad: Pad) -> None:
    feeds = pad(PROMPTS)
    with pytest.raises(InputError, match=r"rows \[3\] are not there; the batch has 3"):
        feeds.select([0, 3])
    with pytest.raises(InputError, match=r"rows \[-1\] are not there"):
        feeds.leave([-1])
    with pytest.raises(InputError, match="row 1 has 3 tokens and cannot be cut back to 4"):
        feeds.truncate(1, 4)


@pytest.mark.parametrize("own_lengths", [False, True])
def test_a_context_stays_whole(own_lengths: bool) -> None:
    config = families.read_config(tiny_values("glm_infilling"))
    feeds = prefill_feeds(PROMPTS, config, own_lengths=own_lengths)
    with pytest.raises(InputError, match="row 0 has a context of 4 tokens, and cannot be cut back to 3"):
        feeds.truncate(0, 3)
    with pytest.raises(InputError, match="the first 4 see each other and must all be"):
        prefill_feeds(PROMPTS[:1], config, own_lengths=own_lengths).after(3)


def test_rows_of_a_prefix_family_with_lengths_of_their_own() -> None:
    """What each sees and where it stands is what it sees and where it stands alone, whatever is padded how."""
    config = families.read_config(tiny_values("glm_infilling"))
    feeds = prefill_feeds(PROMPTS, config, own_lengths=True)
    assert isinstance(feeds, RightPaddedPrefixFeeds)
    wider = feeds.widened(8)
    assert wider.attention_mask.shape == (3, 1, 8, 8)
    for row, prompt in enumerate(PROMPTS):
        alone, length = prefill_feeds([prompt], config), len(prompt.ids)
        for given in (feeds, wider, feeds.rows(slice(row, row + 1))):
            at = 0 if given.batch == 1 else row
            assert given.input_ids[at, :length].tolist() == list(prompt.ids)
            np.testing.assert_array_equal(given.position_ids[at, :, :length], alone.position_ids[0])
            np.testing.assert_array_equal(given.attention_mask[at, 0, :length, :length], alone.attention_mask[0, 0])
            assert not given.attention_mask[at, 0, length:].any()
            assert not given.attention_mask[at, 0, :, length:].any()
    assert feeds.rows(slice(1, 3)).attention_mask.shape == (2, 1, 5, 5)
    pieces = feeds.chunks(2)
    assert [piece.input_ids.shape[1] for piece in pieces] == [4, 2]
    assert [piece.attention_mask.shape for piece in pieces] == [(3, 1, 4, 4), (3, 1, 2, 6)]


def test_a_row_of_a_prefix_family_waits_at_its_last_place() -> None:
    """And no other row's; behind it its table ends."""
    config = families.read_config(tiny_values("glm_infilling"))
    feeds = prefill_feeds(PROMPTS[:2], config, own_lengths=True)
    last = [prompt.context_length + config.max_positions - 2 for prompt in PROMPTS[:2]]
    for _ in range(config.max_positions + 3):
        feeds = feeds.next_step([1, 2], config.most_columns - 1)
    assert feeds.named()[WRITE_INDICES].tolist() == last
    assert feeds.position_ids[:, 1, 0].tolist() == [config.max_positions - 1] * 2
    # A cache that ends before is the limit of all.
    assert feeds.truncate(0, 6).truncate(1, 3).next_step([1, 2], 4).named()[WRITE_INDICES].tolist() == [4, 3]


def test_rows_chosen_are_as_wide_as_the_longest_of_them() -> None:
    config = families.read_config(tiny_values("chatglm2"))
    feeds = prefill_feeds(PROMPTS, config, own_lengths=True)
    for row, prompt in enumerate(PROMPTS):
        alone = feeds.rows(slice(row, row + 1))
        assert alone.input_ids.tolist() == [list(prompt.ids)]
        assert alone.position_ids.tolist() == [list(range(len(prompt.ids)))]
    two = feeds.rows(slice(1, 3))
    assert two.input_ids.shape == two.position_ids.shape == two.attention_mask.shape == (2, 5)
