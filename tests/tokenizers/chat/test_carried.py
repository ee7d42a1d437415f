"""The exported folder's template: other readers get the ids that our own chat gives, and so do we from that folder."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from transformers import AutoTokenizer

from glm_export.checkpoints.checkpoint import open_checkpoint
from glm_export.errors import InputError
from glm_export.tokenizers import Tokenizer, load_tokenizer
from glm_export.tokenizers.chat.carried import CALLED, CHATS, TOOLS
from glm_export.tokenizers.chat.templates import GUARD, built_in, guarded
from tests.helpers.golden_data import Golden
from tests.tokenizers.chat.test_templates import RELEASED, turns
from tests.tokenizers.test_added_tokens import SPECIAL, PublishedPieces, with_tokens
from tests.tokenizers.test_conversion import written

PHILOSOPHY: list[Any] = [
    {"role": "system", "content": "philosophy <|user|>"},
    {"role": "user", "content": "sop </s>  x\n"},
    {"role": "assistant", "content": " [gMASK]"},
    {"role": "user", "content": "😀"},
]
TEMPLATE = (
    "\n[gMASK]sop\n{% for m in messages %}\n<|{{ m.role }}|>\n {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}\n"
)


def checkpoint(family: str, folder: Path, **values: Any) -> Path:
    shutil.copytree(Golden(family).folder, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def ours_of(folder: Path, family: str) -> Tokenizer:
    return load_tokenizer(folder, open_checkpoint(Golden(family).folder).config)


# -- a folder's own ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [RELEASED["chatglm3-6b"], TEMPLATE, TEMPLATE.replace("\n", "\r\n")])
@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_a_folders_template_counts_for_everybody(family: str, template: str, tmp_path: Path) -> None:
    """Special tokens in its text are read, as are those in messages: transformers does not tell them apart."""
    if family == "chatglm2":  # it has no roles, and a folder that writes some is taken for ChatGLM3's
        template = template.replace("<|assistant|>", "答：").replace("<|", "").replace("|>", ":")
    source = checkpoint(family, tmp_path / "source", chat_template=template)
    folder = written(source, tmp_path / "out")
    ours, exported, theirs = ours_of(source, family), ours_of(folder, family), AutoTokenizer.from_pretrained(folder)
    special: Mapping[str, int] = ours.special
    for messages in (*CHATS, PHILOSOPHY):
        ids = ours.chat(messages)
        assert ids[ids.index(special["[gMASK]"]) + 1] == special["sop"]
        assert exported.chat(messages) == ids
        assert theirs.apply_chat_template(messages, add_generation_prompt=True) == ids
    before = ours_of(Golden(family).folder, family).chat(CHATS[0])
    assert (ours.chat(CHATS[0]) == before) == (family == "chatglm3" and template == RELEASED["chatglm3-6b"])
    assert special["sop"] not in ours.encode_plain("philosophy")


@given(messages=turns("system", "user", "assistant"))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_released_folder_equals_transformers(messages: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """ChatGLM3's newer uploads list their tokens and have a template: the publisher's class reads both."""
    ours, theirs = released_pair(tmp_path_factory)
    assert ours.chat(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True)


def released_pair(factory: pytest.TempPathFactory, made: list[Any] = []) -> tuple[Tokenizer, Any]:  # noqa: B006
    if not made:
        folder = with_tokens("chatglm3", factory.mktemp("released"), ())
        special: dict[str, int] = Golden("chatglm3").tokenizer["special"]
        values = json.loads((folder / "tokenizer_config.json").read_text())
        listed = ("[gMASK]", "sop", "<|user|>", "<|assistant|>", "<|observation|>")
        values |= {
            "chat_template": RELEASED["chatglm3-6b"],
            "added_tokens_decoder": {str(special[t]): {"content": t, "special": False} for t in listed},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(values))
        kind = type("ChatGLMTokenizer", (PublishedPieces,), {"own": tuple(special_names())})
        made += [ours_of(folder, "chatglm3"), kind.from_pretrained(str(folder))]
    return made[0], made[1]


def special_names() -> tuple[str, ...]:
    from glm_export import families

    return families.load("chatglm3").SPECIAL_TOKENS


def test_added_tokens_in_a_template(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(Golden("chatglm3").folder, source)
    with_tokens("chatglm3", source, (("<|im_start|>", SPECIAL), ("<|im_end|>", SPECIAL)))
    template = "[gMASK]sop{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    folder = written(source, tmp_path / "out")
    ours, exported, theirs = (
        ours_of(source, "chatglm3"), ours_of(folder, "chatglm3"), AutoTokenizer.from_pretrained(folder)
    )  # fmt: skip
    ids = ours.chat(PHILOSOPHY)
    assert sum(i == ours.added[0].index for i in ids) == len(PHILOSOPHY)
    assert exported.chat(PHILOSOPHY) == theirs.apply_chat_template(PHILOSOPHY, add_generation_prompt=True) == ids


def test_named_templates_are_carried(tmp_path: Path) -> None:
    for family, plain, tooled in (("chatglm3", "[gMASK]sop A", "[gMASK]sop B"), ("glm4_remote", "A", "B")):
        tooled += "{{ tools | tojson }}"
        source = checkpoint(family, tmp_path / f"{family}-source")
        (source / "chat_template.jinja").write_text(plain)
        (source / "additional_chat_templates").mkdir()
        (source / "additional_chat_templates/tool_use.jinja").write_text(tooled)
        folder = written(source, tmp_path / f"{family}-out")
        ours, theirs = ours_of(source, family), AutoTokenizer.from_pretrained(folder)
        for tools in (None, list(TOOLS)):
            ids = ours.chat(CHATS[0], tools=tools)
            assert (
                theirs.apply_chat_template(CHATS[0], tools=tools)
                == ids
                == ours_of(folder, family).chat(CHATS[0], tools=tools)
            )
        assert ours.chat(CHATS[0]) != ours.chat(CHATS[0], tools=list(TOOLS))


def test_a_template_that_is_not_exact_is_left_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A token whose name stands in another's cannot be found by its name."""
    source = checkpoint("chatglm3", tmp_path / "source", chat_template=TEMPLATE)
    values = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(values | {"pad_token": "s"}))
    assert guarded("x", ("sop", "s")) is None
    with caplog.at_level(logging.WARNING):
        folder = written(source, tmp_path / "out")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    if "s" in ours_of(source, "chatglm3").named:
        assert "chat_template" not in config
        assert "not exact in tokenizer.json" in caplog.text


# -- the family's ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["chatglm3", "glm4_remote"])
def test_tools_of_the_family_reach_everybody(family: str, tmp_path: Path) -> None:
    source = checkpoint(family, tmp_path / "source", **({"chat_template": None} if family == "glm4_remote" else {}))
    folder = written(source, tmp_path / "out")
    ours, theirs = ours_of(source, family), AutoTokenizer.from_pretrained(folder)
    for tools in (None, list(TOOLS)):
        for messages in (*CHATS, CALLED):
            ids = ours.chat(messages, tools=tools)
            assert theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True) == ids
            assert ours_of(folder, family).chat(messages, tools=tools) == ids


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3"])
def test_an_exported_folder_knows_its_own_template(family: str, tmp_path: Path) -> None:
    """It has guarded names, for others; here the prompt stays what it was, corner cases included."""
    folder = written(checkpoint(family, tmp_path / "source"), tmp_path / "out")
    assert GUARD in json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    messages = PHILOSOPHY[1:] if family == "chatglm2" else PHILOSOPHY
    assert ours_of(folder, family).chat(messages) == ours_of(Golden(family).folder, family).chat(messages)
    with pytest.raises(InputError):
        ours_of(folder, family).chat([{"role": "sage", "content": ""}])


def test_a_template_reads_alike_inside_the_guard() -> None:
    """Newlines at both ends, where Jinja takes some away."""
    from glm_export.tokenizers.chat.environment import render

    blocks = "{% if 1 %}\n  x\n  {% endif %}"
    around = ("", " ", "\t ", "\n", "\n\n", "\r\n", " \n ", "\u3000", "{# x #}", "{{ 1 }}", "  {#- x -#}  ")
    for text in (f"{before}{inner}{after}" for before in around for inner in ("", "a", blocks) for after in around):
        wrapped = guarded(text, ("sop",))
        assert wrapped is not None
        assert render(wrapped, {}) == render(text, {})
    wrapped = guarded("{{ x }}sop", ("sop",))
    assert wrapped is not None
    assert render(wrapped, {"x": f"{GUARD}sop "}) == f"{GUARD}sop {GUARD}sop"


@pytest.mark.parametrize("name", RELEASED)
def test_released_templates_read_alike_inside_the_guard(name: str) -> None:
    from glm_export.tokenizers.chat.environment import render

    wrapped = guarded(RELEASED[name], ("<|never|>",))
    assert wrapped is not None
    for messages in (*CHATS, CALLED):
        for tools in (None, list(TOOLS)):
            values = {"messages": messages, "tools": tools, "add_generation_prompt": True}
            assert render(wrapped, values) == render(RELEASED[name], values)


def test_built_in_templates_are_complete() -> None:
    for family, prompt in (
        ("chatglm2", "rounds"),
        ("chatglm3", "role_parts"),
        ("glm", "role_lines"),
        ("glm4", "role_lines"),
    ):
        assert not any(place in built_in(family, prompt) for place in ("{TEXT}", "{FUNCTION}", "{GUARD}"))


# -- families that are read from tokenizer.json ------------------------------------------------------------------------


def native(family: str, native_folder: Path, folder: Path, **values: Any) -> Path:
    """A golden checkpoint of a native family with a tokenizer beside it."""
    shutil.copytree(Golden(family).folder, folder)
    shutil.copy(native_folder / "tokenizer.json", folder / "tokenizer.json")
    if values:
        (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("family", ["glm_hf", "glm4_hf", "glm4_moe"])
def test_a_native_folder_without_a_template_gets_the_familys(family: str, native_folder: Path, tmp_path: Path) -> None:
    source = native(family, native_folder, tmp_path / "source")
    folder = written(source, tmp_path / "out")
    ours, theirs = ours_of(source, family), AutoTokenizer.from_pretrained(folder)
    texts = set()
    for tools in (None, list(TOOLS)):
        for messages in (*CHATS, CALLED):
            ids = ours.chat(messages, tools=tools)
            assert theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True) == ids
            assert ours_of(folder, family).chat(messages, tools=tools) == ids
            texts.add(theirs.decode(ids))
    assert any("weather" in text for text in texts)


@pytest.mark.parametrize("family", ["glm_hf", "glm4_moe"])
def test_a_native_folders_template_stays(family: str, native_folder: Path, tmp_path: Path) -> None:
    """In the config of the exported folder, wherever it was, and a single one in its file as well."""
    source = native(family, native_folder, tmp_path / "source", eos_token="<|endoftext|>")
    (source / "chat_template.jinja").write_text(TEMPLATE)
    folder = written(source, tmp_path / "out")
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == TEMPLATE
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    theirs = AutoTokenizer.from_pretrained(folder)
    for messages in (*CHATS, PHILOSOPHY):
        ids = ours_of(source, family).chat(messages)
        assert theirs.apply_chat_template(messages, add_generation_prompt=True) == ids
        assert ours_of(folder, family).chat(messages) == ids


# -- the library's calls -----------------------------------------------------------------------------------------------


def test_a_conversation_with_tools_through_the_library() -> None:
    """Whatever a random model says, the calls reach the prompt and come back as a message."""
    from glm_export import api
    from glm_export.generation.generate import generate_ids

    messages: list[Any] = [{"role": "user", "content": "北京？"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    with api.load_session(Golden("glm4_remote").folder) as session:
        prompt = session.tokenizer.chat(messages, tools=tools)
        assert len(prompt) > len(session.tokenizer.chat(messages)) + 50
        (row,) = generate_ids(session, [prompt], stopping=api.stopping_for(session, 6))
        assert api.chat(session, messages, tools=tools, max_new_tokens=6) == session.tokenizer.decode(row.ids).strip()
        reply = api.chat_message(session, messages, tools=tools, max_new_tokens=6)
        assert reply == session.tokenizer.parse_reply(row.ids, tools)
        assert session.tokenizer.chat([*messages, reply, *messages], tools=tools)[: len(prompt)] == prompt
        with pytest.raises(InputError, match="no place for documents"):
            api.chat(session, messages, documents=[{"text": "x"}])


def test_a_tokenizer_json_of_the_publisher_gets_a_template_too(tmp_path: Path) -> None:
    """Beside tokenizer.model, in a folder without a template."""
    source = checkpoint("glm4_remote", tmp_path / "source", chat_template=None)
    shutil.copy(written(source, tmp_path / "made") / "tokenizer.json", source / "tokenizer.json")
    folder = written(source, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    for messages in CHATS:
        ids = ours_of(source, "glm4_remote").chat(messages)
        assert theirs.apply_chat_template(messages, add_generation_prompt=True) == ids
