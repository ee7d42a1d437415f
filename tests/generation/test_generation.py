"""Generation: batches equal single prompts, stops are exact, streams equal the whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import InputError
from glm_export.generation.generate import generate_ids, generate_steps
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping, TextStream
from glm_export.inputs.prompts import prefill_feeds
from glm_export.sessions.session import Session
from tests.helpers.golden_data import BOUND, Golden, difference

FIRST_LINES = ["千山鸟飞绝，万径人踪灭。", "床前明月光，疑是地上霜。", "白日依山尽，黄河入海流。"]


@pytest.fixture(scope="module", params=["torch", "onnx", "ort", "tensorrt"])
def session(
    request: pytest.FixtureRequest, demo_program: OnnxProgram, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """The embedded model in PyTorch, and with each kind of cache in ONNX Runtime."""
    source: OnnxProgram | str = demo_program if request.param == "onnx" else "demo"
    if request.param in ("ort", "tensorrt"):
        out = tmp_path_factory.mktemp("generation") / request.param
        source = api.export("demo", out, dialect=request.param, logits="all")
    with api.load_session(source) as made:
        yield made


def test_batch_of_different_lengths_equals_each_alone(session: Session) -> None:
    prompts = [*FIRST_LINES, "春", "国破山河在，城春草木深。\n感时花溅泪，"]
    together = api.generate(session, prompts, max_new_tokens=40)
    assert together == [api.generate(session, prompt, max_new_tokens=40) for prompt in prompts]
    assert together[0].strip() == "孤舟蓑笠翁，独钓寒江雪。"


def test_chunked_prefill_and_steps_equal_one_prefill(session: Session) -> None:
    ids = session.tokenizer.encode("".join(FIRST_LINES))
    feeds = session.feeds([session.prompt(prompt) for prompt in (ids, ids[:9])])
    whole = session.prefill(feeds)
    for size in (1, 7):
        first, *others = feeds.chunks(size)
        parts = [session.prefill(first), *(session.decode(part) for part in others)]
        assert difference(np.concatenate(parts, axis=1), whole, feeds.attention_mask) <= BOUND


def test_a_new_prefill_forgets_the_last(session: Session) -> None:
    once = api.generate(session, FIRST_LINES[0])
    api.generate(session, FIRST_LINES[1])
    assert api.generate(session, FIRST_LINES[0]) == once


def test_stop_ids_end_a_row_and_are_left_out(session: Session) -> None:
    ids = session.tokenizer.encode(FIRST_LINES[1])
    (row,) = generate_ids(session, [ids], stopping=api.stopping_for(session, 100))
    assert row.finish_reason == "stop"
    assert 2 not in row.ids
    (longer,) = generate_ids(session, [ids], stopping=Stopping(max_new_tokens=len(row.ids) + 1))
    assert longer.ids == [*row.ids, 2]
    assert longer.finish_reason == "length"


def test_stop_strings_are_cut_off(session: Session) -> None:
    assert api.generate(session, FIRST_LINES[0], stop_strings=["，", "雪"]).strip() == "孤舟蓑笠翁"
    (row,) = generate_ids(
        session, [session.tokenizer.encode(FIRST_LINES[0])], decode=session.tokenizer.decode,
        stopping=Stopping(max_new_tokens=50, stop_strings=("笠翁",)),
    )  # fmt: skip
    assert row.finish_reason == "stop"
    assert session.tokenizer.decode(row.ids).strip() == "孤舟蓑笠翁"


def test_stream_equals_the_whole(session: Session) -> None:
    decode = session.tokenizer.decode
    ids = session.tokenizer.encode(FIRST_LINES[2])
    for stops in ((), ("，更",), ("一层楼。X",)):
        stream, told = TextStream(session.tokenizer.detokenizer(), stops), 0
        stopping = Stopping(max_new_tokens=30, stop_ids=frozenset({2}), stop_strings=stops)
        parts = []
        for (row,) in generate_steps(session, [ids], stopping=stopping, decode=decode):
            parts.append(stream.feed(row.ids[told:]) + (stream.finish() if row.finish_reason else ""))
            told = len(row.ids)
        assert "".join(parts) == api.generate(session, FIRST_LINES[2], max_new_tokens=30, stop_strings=stops)
        assert len([part for part in parts if part]) > 3


def test_sampling_is_repeatable_and_rows_draw_apart(session: Session) -> None:
    def draw(seed: int) -> list[str]:
        sampling = Sampling(temperature=3.0, top_k=200, top_p=0.98, seed=seed)
        return api.generate(session, ["春眠", "春眠"], max_new_tokens=12, sampling=sampling)

    first = draw(5)
    assert draw(5) == first
    assert first[0] != first[1]
    assert draw(6) != first


def test_context_ends_a_row_but_not_its_neighbour() -> None:
    """A row at the end of its context waits for the others without running past the rotary tables."""
    checkpoint = open_checkpoint(Golden("chatglm2").folder)
    context = checkpoint.config.max_positions
    long, short = [5] * (context - 3), [7]
    with api.load_session(checkpoint) as session:
        rows = generate_ids(session, [long, short], stopping=Stopping(max_new_tokens=8))
        (alone,) = generate_ids(session, [short], stopping=Stopping(max_new_tokens=8))
    assert (rows[0].finish_reason, len(rows[0].ids)) == ("context", 3)
    assert (rows[1].finish_reason, rows[1].ids) == ("length", alone.ids)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([], "at least one"), ([[]], "empty"), ([[1] * 600], "600 tokens"), ([[99999]], "99999"), ([[-1]], "-1")],
)
def test_bad_prompts(session: Session, prompts: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate_ids(session, prompts, stopping=Stopping())


def test_decode_needs_a_prefill(demo_program: OnnxProgram) -> None:
    with api.load_session(demo_program) as session, pytest.raises(InputError, match="before prefill"):
        session.decode(prefill_feeds([session.prompt([1])], session.config))


def test_stop_strings_need_a_decoder(session: Session) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        generate_ids(session, [[5]], stopping=Stopping(stop_strings=("x",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number and at least 1, found 0"),
        ({"max_new_tokens": -(10**30)}, "max_new_tokens must be"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be"),
        ({"max_new_tokens": float("nan")}, "max_new_tokens must be"),
        ({"max_new_tokens": "9"}, "max_new_tokens must be"),
        ({"stop_strings": ["a", ""]}, "a stop string needs at least one character"),
        ({"stop_strings": [b"a"]}, "stop strings must be texts"),
        ({"stop_strings": 5}, "stop strings must be texts"),
        ({"stop_strings": None}, "stop strings must be texts"),
    ],
)
def test_lengths_and_stops_that_cannot_be_are_one_line(session: Session, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        api.generate(session, FIRST_LINES[0], **options)


@pytest.mark.parametrize("prompt", [None, 5, [5.0], [None], ["a", b"b"], [], ["a", []]])
def test_prompts_that_are_no_text_are_one_line(session: Session, prompt: list) -> None:
    with pytest.raises(InputError, match="a prompt"):
        api.generate(session, prompt)


def test_huge_limits_and_stops_that_never_come_change_nothing(session: Session) -> None:
    expected = api.generate(session, FIRST_LINES[0])
    never = ["x" * 10**7, *(f"never {number}" for number in range(1000))]
    assert api.generate(session, FIRST_LINES[0], max_new_tokens=10**30, stop_strings=never) == expected
    # One text is one stop string, not each of its characters.
    assert api.generate(session, FIRST_LINES[0], stop_strings="翁，x") == expected
    assert api.generate(session, FIRST_LINES[0], stop_strings="翁，").strip() == "孤舟蓑笠"


def test_chat_follows_the_familys_prompt(session: Session) -> None:
    reply = api.chat(session, [{"role": "user", "content": FIRST_LINES[0]}])
    assert reply == "孤舟蓑笠翁，独钓寒江雪。"
