"""Commands of a conversation: a line that is no question is none, and changes what the model is asked next."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from glm_export import api
from glm_export.cli import cli
from glm_export.errors import InputError
from glm_export.generation.conversation import Conversation
from tests.helpers.golden_data import Golden

POEM, NEXT = "千山鸟飞绝，万径人踪灭。", "孤舟蓑笠翁，独钓寒江雪。"


def chat(typed: str) -> Result:
    return CliRunner().invoke(cli, ["chat", "demo"], input=typed, catch_exceptions=False)


def test_clear_forgets_what_was_said() -> None:
    twice = chat(f"{POEM}\n{POEM}\n\n").stdout
    cleared = chat(f"{POEM}\n/clear\n{POEM}\n\n")
    assert cleared.stdout == f"{NEXT}\n{NEXT}\n"
    assert twice != cleared.stdout
    assert "forgotten" in cleared.stderr
    assert cleared.exit_code == 0


def test_help_and_system_are_no_questions() -> None:
    result = chat("/help\n/system\n\n")
    assert (result.exit_code, result.stdout) == (0, "")
    for said in ("/clear", "/system TEXT", '"""', "Ctrl-C", "system message: none"):
        assert said in result.stderr


def test_what_is_no_command_is_refused_and_a_path_is_a_question() -> None:
    refused = chat(f"/foo\n{POEM}\n\n")
    assert "there is no command /foo; known: /help, /clear, /system TEXT" in refused.stderr
    assert refused.stdout == f"{NEXT}\n"
    asked = chat("/etc/passwd\n\n")
    assert (asked.exit_code, asked.stderr) == (0, "")
    assert asked.stdout.strip()


def test_a_prompt_without_a_system_message_keeps_the_former() -> None:
    result = chat(f"/system 你是诗人。\n{POEM}\n\n")
    assert "role 'system' is not in this model's prompt" in result.stderr
    assert result.stdout == f"{NEXT}\n"


def test_a_system_message_is_part_of_the_next_prompt() -> None:
    with api.load_session(Golden("chatglm3").folder) as session:
        conversation = Conversation(session)
        before = conversation.ask("a")
        conversation.set_system("b")
        assert conversation.system == "b"
        assert conversation.ask("a") != before
        conversation.answered("a", "c")
        conversation.clear()
        assert [message["role"] for message in conversation.messages] == ["system"]
    with api.load_session("demo") as session:
        conversation = Conversation(session)
        with pytest.raises(InputError):
            conversation.set_system("b")
        assert conversation.system is None
