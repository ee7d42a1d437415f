"""A folder's template in our environment and in transformers': the same text, for the same conversations."""

from __future__ import annotations

import json
import resource
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from glm_export.errors import CheckpointError, InputError
from glm_export.tokenizers.chat import renderer
from glm_export.tokenizers.chat.folder_template import FolderTemplate, read_template
from glm_export.tokenizers.chat.renderer import render_apart
from glm_export.tokenizers.chat.templates import built_in
from tests.helpers.golden_data import Golden

RELEASED = {
    "glm-4-9b-chat": json.loads((Golden("glm4_remote").folder / "tokenizer_config.json").read_text())["chat_template"],
    # As ChatGLM3-6B's newer uploads word theirs.
    "chatglm3-6b": (
        "{% for message in messages %}{% if loop.first %}[gMASK]sop<|{{ message['role'] }}|>\n {{ message['content'] }}"
        "{% else %}<|{{ message['role'] }}|>\n {{ message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "GLM-4-0414": built_in("glm4", "role_lines"),
    "GLM-4.5": built_in("glm4_moe", "role_lines"),
}
FEATURES = {
    "special tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token is defined }}|{{ mask_token }}",
    "tools and documents": "{{ tools is none }} {{ documents is none }} {{ tools is defined }}",
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ messages | tojson(ensure_ascii=True) }}"
    "{{ messages | tojson(separators=(',', ':'), sort_keys=True) }}",
    "generation": "{% for m in messages %}{% generation %}<{{ m.content | trim }}>{% endgeneration %}\n{% endfor %}x",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{% if m.role == 'system' %}"
    "{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "blocks": "  {% if messages %}\n    yes\n  {% endif %}\n\n  {%- set x = 1 %}\n{{ x }}\n",
    "methods": "{{ messages[0]['role'].upper() }}{{ messages[-1].role.split('s') | join('|') }}{{ messages | length }}",
    "namespaces and macros": "{% macro f(a, b='z') %}{{ a ~ b }}{% endmacro %}{% set n = namespace(c=0) %}"
    "{% for m in messages %}{% set n.c = n.c + 1 %}{{ f(m.role) }}{% endfor %}{{ n.c }}",
    "escapes": "{{ '<b>&' }}{{ messages[0].content }}",
    "undefined": "{{ nothing }}{{ messages[0].nothing }}{{ 'x' if nothing is defined else 'y' }}",
    "option": "{{ enable_thinking }}{{ 'no' if enable_thinking is defined and not enable_thinking }}",
}
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

TEXT = st.text(max_size=12) | st.sampled_from(
    ["<|user|>", "sop", "</think>x", "\n\n", "{{ x }}", "<think>a</think>b", "'\"&<"]
)
WORDS = TEXT.filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
PARTS = st.lists(st.builds(lambda text: {"type": "text", "text": text}, WORDS), min_size=1, max_size=3)
ARGUMENTS = st.dictionaries(
    st.sampled_from(["city", "天", "n"]),
    WORDS | st.integers(-9, 9) | st.booleans() | st.none() | st.lists(WORDS, max_size=2),
    max_size=3,
)
CALLS = st.lists(
    st.builds(lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
              st.sampled_from(["f", "天气"]), ARGUMENTS),
    min_size=1, max_size=2,
)  # fmt: skip
TOOLS = st.none() | st.lists(
    st.builds(lambda name, text: {"type": "function", "function": {"name": name, "description": text}},
              st.sampled_from(["f", "天气"]), WORDS),
    min_size=1, max_size=2,
)  # fmt: skip


def turns(*roles: str, parts: bool = False) -> st.SearchStrategy[list[dict[str, Any]]]:
    content = WORDS | PARTS if parts else WORDS
    turn = st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(roles), content)
    return st.lists(turn, min_size=1, max_size=5)


def theirs(template: str, messages: Any, tools: Any = None, documents: Any = None, **options: Any) -> str:
    rendered: Any = render_jinja_template(
        [messages], tools=tools, documents=documents, chat_template=template, add_generation_prompt=True,
        **{**VARIABLES, **options},
    )  # fmt: skip
    return rendered[0][0]


def ours(template: str, messages: Any, tools: Any = None, documents: Any = None, **options: Any) -> str:
    own = FolderTemplate(templates={"default": template}, variables=VARIABLES)
    return own.render(messages, tools, documents, options)


# -- the same text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEATURES)
@given(messages=turns("system", "user", "assistant"), enable_thinking=st.booleans())
@settings(max_examples=25)
def test_every_feature_equals_transformers(name: str, messages: Any, enable_thinking: bool) -> None:
    options = {"enable_thinking": enable_thinking}
    assert ours(FEATURES[name], messages, **options) == theirs(FEATURES[name], messages, **options)


@pytest.mark.parametrize("name", RELEASED)
@given(messages=turns("system", "user", "assistant", "observation"))
@settings(max_examples=100)
def test_released_templates_equal_transformers(name: str, messages: Any) -> None:
    if name == "GLM-4.5":  # of the two words it knows one
        messages = [m | {"role": "tool"} if m["role"] == "observation" else m for m in messages]
    assert ours(RELEASED[name], messages) == theirs(RELEASED[name], messages)


@given(
    messages=turns("system", "user", "assistant", "tool", parts=True),
    calls=CALLS,
    tools=TOOLS,
    thought=st.none() | WORDS,
)
@settings(max_examples=150)
def test_tools_equal_transformers(messages: Any, calls: Any, tools: Any, thought: Any) -> None:
    """GLM-4.5's: parts, calls, thoughts, tools."""
    called = {"role": "assistant", "content": "", "tool_calls": calls}
    called |= {"reasoning_content": thought} if thought is not None else {}
    conversation = [*messages, called, {"role": "tool", "content": "雨"}]
    template = RELEASED["GLM-4.5"]
    assert ours(template, conversation, tools) == theirs(template, conversation, tools)


@given(messages=turns("system", "user", "assistant"), tools=TOOLS)
@settings(max_examples=60)
def test_tools_of_glm4_0414_equal_transformers(messages: Any, tools: Any) -> None:
    template = RELEASED["GLM-4-0414"]
    assert ours(template, messages, tools) == theirs(template, messages, tools)


def test_documents_and_dates_equal_transformers() -> None:
    documents = [{"title": "a", "text": "文"}]
    template = "{% for d in documents or [] %}{{ d.title }}: {{ d['text'] }}{% endfor %}"
    assert ours(template, ASKED, documents=documents) == theirs(template, ASKED, documents=documents) == "a: 文"
    assert ours(template, ASKED) == theirs(template, ASKED) == ""
    for _ in range(3):  # midnight may come between
        now = {f"{datetime.now():%Y-%m-%d}", ours("{{ strftime_now('%Y-%m-%d') }}", ASKED)}
        if len(now) == 1:
            break
    assert len(now) == 1


ASKED: list[Any] = [{"role": "user", "content": "hi"}]


# -- what transformers writes as Python does ---------------------------------------------------------------------------


def test_no_content_is_no_text() -> None:
    messages = [*ASKED, {"role": "assistant", "content": None}]
    template = "{% for m in messages %}[{{ m.content }}]{{ m.content is none }}{% endfor %}"
    assert theirs(template, messages) == "[hi]False[None]True"
    assert ours(template, messages) == "[hi]False[]True"


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content }}", "{{ 'x' ~ messages[0].content }}", "{{ '%s' % messages[0].content }}"]
)
def test_parts_are_joined_where_a_template_takes_text(template: str) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert "'type'" in theirs(template, messages)
    assert ours(template, messages).removeprefix("x") == "ab"


@pytest.mark.parametrize(
    "template",
    ["{{ messages }}", "{{ messages[0] }}", "{{ messages[:1] }}", "{{ messages | string }}", "{{ 'a' ~ messages }}"],
)
def test_no_python_in_the_prompt(template: str) -> None:
    assert "{'" in theirs(template, ASKED)
    with pytest.raises(InputError, match="as Python does"):
        ours(template, ASKED)


@pytest.mark.parametrize("written", [{"n": 1}, '{"n": 1}'])
def test_arguments_in_the_form_a_template_takes(written: Any) -> None:
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": written}}]},
    ]
    items = "{% for k, v in messages[1].tool_calls[0].function.arguments.items() %}{{ k }}={{ v }}{% endfor %}"
    assert ours(items, messages) == "n=1"
    assert ours("{{ messages[1].tool_calls[0].function.arguments }}", messages) == '{"n": 1}'


F: list[Any] = [{"name": "f"}]
TEXT_ALONE, TOOLS_BESIDE = "{{ messages[0].content }}", "{% for t in tools or [] %}{{ t.name }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message", "options", "reason"),
    [
        (TEXT_ALONE, {"content": "hi"}, {"tools": F}, "no place for tools"),
        (TEXT_ALONE, {"content": "hi"}, {"documents": [{"text": "f"}]}, "no place for documents"),
        (TEXT_ALONE, {"tool_calls": F}, {}, "no place for tool_calls"),
        (TEXT_ALONE, {"metadata": "f"}, {}, "no place for metadata"),
        (TEXT_ALONE, {"tools": F}, {}, "no place for tools of a message"),
        (TOOLS_BESIDE, {"tools": F}, {"tools": [{"name": "g"}]}, "no place for tools of a message"),
        (TEXT_ALONE, {"role": "sage"}, {}, "role 'sage' is not in the folder's"),
        ("{{ raise_exception('only one turn, please') }}", {}, {}, "only one turn, please"),
    ],
)
def test_what_a_template_has_no_place_for(template: str, message: Any, options: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        ours(template, [{"role": "assistant"} | message], **options)


def test_tools_of_a_message_where_the_template_reads_those_beside() -> None:
    template = "{% for t in tools or [] %}<{{ t.name }}>{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert ours(template, [{"role": "system", "content": "x", "tools": [{"name": "f"}]}]) == "<f>x"


def test_a_template_may_have_roles_of_its_own() -> None:
    template = "{% for m in messages %}{{ 'S' if m.role == 'sage' else 'x' }}{% endfor %}"
    assert ours(template, [{"role": "sage", "content": ""}]) == "S"


def test_answers_by_the_name_the_template_has() -> None:
    only_tool = "{% for m in messages %}{% if m.role == 'tool' %}T{% endif %}{% endfor %}"
    only_observation = "{% for m in messages %}{% if m.role == 'observation' %}O{% endif %}{% endfor %}"
    for role in ("tool", "observation"):
        assert ours(only_tool, [{"role": role, "content": ""}]) == "T"
        assert ours(only_observation, [{"role": role, "content": ""}]) == "O"


# -- hostile templates -------------------------------------------------------------------------------------------------

HOSTILE = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "loops within loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a long text": "{{ 'a' * 10**11 }}",
    "a long list": "{{ ([0] * 10**10) | length }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "padding": "{{ 'x' | center(10**11) }}{{ 'x'.ljust(10**11) }}",
    "format": "{{ '%1000000000000d' % 1 }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "much output": "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a constant": "{{ (9 ** (9 ** 9)) * 0 }}",
    "attributes": "{{ ''.__class__.__mro__ }}",
    "format's attributes": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a change of what it was given": "{{ messages.append(1) }}",
    "a file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "a syntax error": "{{ unclosed",
    "a division": "{{ 1 // 0 }}",
    "a missing key": "{{ {}['x'].y }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the limit of computing, whatever they do; and the next template is rendered as if nothing had been."""
    monkeypatch.setattr(renderer, "SECONDS", 1.0)
    renderer._stop()  # its time is counted when it ends, and whatever ran before would be counted as well
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(InputError, match="chat template") as raised:
        render_apart(HOSTILE[name], {"messages": ASKED})
    renderer._stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Start, one second and its rounding up to a whole one.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert "\n" not in str(raised.value)
    assert render_apart("{{ messages[0].content }}", {"messages": ASKED}) == "hi"


def test_python_is_out_of_reach() -> None:
    """What the sandbox does not hand out is nothing."""
    assert render_apart("{{ raise_exception.__globals__ }}{{ messages.__class__ }}", {"messages": ASKED}) == ""


def test_a_long_prompt_is_none_of_them() -> None:
    text = "长文" * 1_000_000
    assert render_apart("{{ messages[0].content }}", {"messages": [{"role": "user", "content": text}]}) == text


# -- which template ----------------------------------------------------------------------------------------------------


def save(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def test_the_file_counts_then_the_config_then_the_older_file(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    for name, value, expected in (
        ("chat_template_dot_json", {"chat_template": "c"}, "c"),
        ("tokenizer_config_dot_json", {"chat_template": "b", "eos_token": {"content": "</s>"}}, "b"),
        ("chat_template_dot_jinja", "a", "a"),
    ):
        found = read_template(save(tmp_path, **{name: value}))
        assert found is not None
        assert found.chosen(None) == expected
    assert found is not None
    assert found.variables == {"eos_token": "</s>"}


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    for folder in (
        save(tmp_path / "list", tokenizer_config_dot_json={"chat_template": named}),
        save(tmp_path / "files", chat_template_dot_jinja="a", additional_chat_templates__tool_use_dot_jinja="b"),
    ):
        found = read_template(folder)
        assert found is not None
        assert (found.chosen(None), found.chosen([])) == ("a", "b")
    found = read_template(save(tmp_path / "other", tokenizer_config_dot_json={"chat_template": named[1:]}))
    assert found is not None
    with pytest.raises(InputError, match="no default"):
        found.chosen(None)


def test_special_tokens_as_transformers_names_them(tmp_path: Path) -> None:
    config = {
        "chat_template": "x",
        "eos_token": "</s>",
        "pad_token": None,
        "additional_special_tokens": ["<a>", {"content": "<b>"}],
    }
    save(
        tmp_path,
        tokenizer_config_dot_json=config,
        special_tokens_map_dot_json={"eos_token": "<old>", "unk_token": "<unk>"},
    )
    found = read_template(tmp_path, {"pad_token": "<pad>"})
    assert found is not None
    assert found.variables == {
        "eos_token": "<old>", "unk_token": "<unk>", "pad_token": "<pad>", "additional_special_tokens": ["<a>", "<b>"],
    }  # fmt: skip
    save(tmp_path, tokenizer_config_dot_json=config | {"added_tokens_decoder": {}})
    found = read_template(tmp_path)
    assert found is not None
    assert found.variables == {"eos_token": "</s>", "additional_special_tokens": ["<a>", "<b>"]}


@pytest.mark.parametrize("template", [3, [{"name": "default"}], [["default", "x"]]])
def test_a_damaged_template_is_named(template: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"chat_template in .*tokenizer_config"):
        read_template(save(tmp_path, tokenizer_config_dot_json={"chat_template": template}))


def test_a_template_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="chat template in UTF-8"):
        read_template(tmp_path)


def test_a_template_may_not_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="outside the model folder"):
        read_template(folder)
