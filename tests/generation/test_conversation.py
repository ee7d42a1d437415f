"""A conversation longer than the context: what leaves, what stays, and that the rest is what a new one would say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.generation.conversation import Conversation
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.sessions.session import Session
from glm_export.tokenizers.chat import Message
from tests.helpers.golden_data import Golden

QUESTION, REPLY = "千山鸟飞绝，万径人踪灭。", "孤舟蓑笠翁，独钓寒江雪。"


@pytest.fixture(scope="module", params=["onnx", "static", "chatglm3", "chatglm"])
def session(
    request: pytest.FixtureRequest, demo_program: OnnxProgram, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    """The embedded model with a growing and a short static cache; one with a system message; a prefix family."""
    source: OnnxProgram | Path = Golden(request.param).folder if "chatglm" in request.param else demo_program
    if request.param == "static":
        out = tmp_path_factory.mktemp("conversation") / "static"
        source = api.export("demo", out, dialect="tensorrt", max_length=200)
    with api.load_session(source) as made:
        yield made


def spoken(rounds: int) -> list[Message]:
    turns = [("user", f"{number} {QUESTION}") for number in range(rounds)]
    return [
        Message(role=role, content=content)
        for turn in turns for role, content in (turn, ("assistant", REPLY))
    ]  # fmt: skip


def test_the_oldest_rounds_leave_and_the_system_message_stays(session: Session) -> None:
    system = "be brief" if session.config.family == "chatglm3" else None
    conversation = Conversation(session, system=system, max_new_tokens=40)
    kept = [Message(role="system", content=system)] if system else []
    for number in range(200):
        question = f"{number} {QUESTION}"
        ids = conversation.ask(question)
        gone = conversation.rounds_left_out
        assert conversation.messages == [*kept, *spoken(number)[2 * gone :]]
        assert ids == session.tokenizer.chat([*conversation.messages, Message(role="user", content=question)])
        if number % 40 == 0:  # the model takes it, and there is room to answer
            (row,) = generate_ids(session, [ids], stopping=Stopping(max_new_tokens=40))
            assert (row.finish_reason, len(row.ids)) == ("length", 40)
        conversation.answered(question, REPLY)
    assert 0 < conversation.rounds_left_out < 200
    # No more left than had to: one round more has no room.
    gone = conversation.rounds_left_out
    longer = session.prompt(session.tokenizer.chat([*kept, *spoken(199)[2 * gone - 2 :], *spoken(200)[-2:-1]]))
    assert longer.excess_tokens(session.config) > 0 or session.remaining_tokens(longer) < 40


def test_a_question_that_has_no_room_itself_says_by_how_much(session: Session) -> None:
    conversation = Conversation(session, max_new_tokens=40)
    conversation.answered(QUESTION, REPLY)
    ids = conversation.ask(QUESTION * (20 if session.capacity else 300))
    assert conversation.messages == []
    held = session.capacity or session.config.max_positions
    prompt = session.prompt(ids)
    excess = max(prompt.excess_tokens(session.config), len(ids) - (session.capacity or 10**9))
    with pytest.raises(InputError, match=f"{held}: {excess} too many; shorten"):
        generate_ids(session, [ids], stopping=Stopping())


def test_a_question_that_cannot_be_read_changes_nothing(exported: Callable[[str], OnnxProgram]) -> None:
    with api.load_session(exported("chatglm2")) as session:
        conversation = Conversation(session)
        conversation.answered("a", "b")
        with pytest.raises(InputError, match="surrogate"):
            conversation.ask("half \ud800")
        assert len(conversation.messages) == 2
        assert conversation.ask("c") == session.tokenizer.chat(
            [*conversation.messages, {"role": "user", "content": "c"}]
        )
