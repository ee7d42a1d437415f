"""The page in a real browser, used as people use it, before the embedded models. Skipped where there is no browser."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.browser import Page, opened_browser

LINE, NEXT = "春眠不觉晓，处处闻啼鸟。", "夜来风雨声，花落知多少。"
BLANKS = "春眠不觉晓，[MASK]夜来风雨声，[MASK]"
READY, DONE = "document.querySelector('#model').value", "document.querySelector('#stop').hidden"
CHATS = "/v1/chat/completions"
Pages = Callable[..., Page]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    with opened_browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(pages: Pages, server: str) -> Iterator[Page]:
    """Open, with greedy answers; it must have asked nobody but the server, and complained of nothing."""
    made = pages(server)
    made.wait(READY)
    put(made, "temperature", "0")
    yield made
    assert made.complaints() == []
    assert [address for address in made.requests() if not address.startswith(server)] == []


def put(page: Page, name: str, text: str) -> None:
    """Into a parameter's field, as typed."""
    page.run(f"document.querySelector('[name={name}]').select()")
    page.run(f"document.querySelector('[name={name}]').focus()")
    page.type(text)


def say(page: Page, text: str) -> None:
    page.click("#text")
    page.type(text)
    page.key("Enter")


def answered(page: Page, times: int = 1) -> None:
    page.wait(f"{DONE} && document.querySelectorAll('.assistant .stats').length === {times}")


def text(page: Page, selector: str) -> Any:
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(element => element.textContent)")


def press(page: Page, label: str, number: int = 0) -> None:
    """The button of a turn that says this."""
    page.run(
        "document.querySelectorAll('.pressed').forEach(element => element.classList.remove('pressed'));"
        f"[...document.querySelectorAll('.turn button')].filter(one => (one.ariaLabel ?? one.textContent) === "
        f"{json.dumps(label)})[{number}].classList.add('pressed')"
    )
    page.click(".pressed")


def posted(page: Page, path: str) -> list[dict[str, Any]]:
    """Bodies that went to a door."""
    page.run("0")
    sent = [event["params"]["request"] for event in page.events("Network.requestWillBeSent")]
    return [json.loads(one["postData"]) for one in sent if one["url"].endswith(path) and one["method"] == "POST"]


def test_a_chat_is_streamed_with_its_pace_and_alternatives(page: Page) -> None:
    say(page, LINE)
    answered(page)
    assert text(page, ".said") == [LINE, NEXT]
    (stats,) = text(page, ".assistant .stats")
    assert all(part in stats for part in ("first token", "tokens/s", "12 tokens"))
    page.hover(".assistant .word", 2)
    page.wait("!document.querySelector('#alternatives').hidden")
    rows = text(page, "#alternatives th")
    assert len(rows) == 5
    assert rows[0] == NEXT[2]
    assert text(page, "#alternatives .chosen td")[0] == "100 %"
    # With the keys: one stop for all words, the arrows go along them.
    page.hover("h1")
    page.wait("document.querySelector('#alternatives').hidden")
    assert page.run("document.querySelectorAll('.assistant .word[tabindex=\"0\"]').length") == 1
    page.run("document.querySelector('.assistant .word[tabindex=\"0\"]').focus()")
    for key, word in (("ArrowRight", NEXT[1]), ("End", NEXT[-1]), ("ArrowLeft", NEXT[-2])):
        page.key(key)
        assert page.run("document.activeElement.textContent") == word
        assert page.run("document.activeElement.getAttribute('aria-describedby')") == "alternatives"
        assert text(page, "#alternatives .chosen th") == [word]
    page.key("Escape")
    assert page.run("document.querySelector('#alternatives').hidden")
    assert NEXT in text(page, "#status")[0]


def test_a_stop_keeps_what_was_written_and_frees_the_row(page: Page, server: str) -> None:
    put(page, "temperature", "100")
    say(page, LINE)
    page.wait("document.querySelectorAll('.assistant .word').length > 3")
    page.click("#stop")
    answered(page)
    assert "stopped" in text(page, ".assistant .stats")[0]
    assert len(text(page, ".assistant .word")) > 3
    end = time.monotonic() + 60
    while True:
        lines = httpx.get(f"{server}/metrics").text.splitlines()
        if not sum(float(line.split()[-1]) for line in lines if line.startswith("glm_requests_running{")):
            break
        assert time.monotonic() < end, "the row is still written"
        time.sleep(0.02)


def test_turns_are_edited_and_asked_again_and_nothing_is_lost(page: Page) -> None:
    say(page, LINE)
    answered(page)
    press(page, "Retry", 1)
    page.wait(f"{DONE} && document.querySelector('.assistant .version')")
    assert text(page, ".assistant .version") == ["2/2"]
    press(page, "Earlier version")
    assert text(page, ".assistant .version") == ["1/2"]
    press(page, "Edit")
    page.run("document.activeElement.select()")
    page.type("白日依山尽，黄河入海流。")
    page.click(".edit .primary")
    page.wait(f"{DONE} && document.querySelector('.user .version')")
    assert text(page, ".said") == ["白日依山尽，黄河入海流。", "欲穷千里目，更上一层楼。"]
    say(page, LINE)
    answered(page, 2)
    press(page, "Edit", 1)
    page.run("document.activeElement.select()")
    page.type("<b>Mine</b>")
    page.click(".edit .primary")
    assert text(page, ".said")[1:] == ["<b>Mine</b>"]
    press(page, "Earlier version")
    assert text(page, ".said") == [LINE, NEXT]
    press(page, "Later version")
    press(page, "Earlier version", 1)
    assert text(page, ".said")[:3] == ["白日依山尽，黄河入海流。", "欲穷千里目，更上一层楼。", LINE]
    sent = posted(page, CHATS)[-1]["messages"]
    assert [one["role"] for one in sent] == ["user", "assistant", "user"]


def test_conversations_stay_in_the_browser(page: Page) -> None:
    say(page, LINE)
    answered(page)
    page.click("#new")
    say(page, "白日依山尽，黄河入海流。")
    answered(page)
    page.run("localStorage.setItem('glm-export.conversation.damaged', '{\"id\": 1')")
    page.run('localStorage.setItem(\'glm-export.conversation.strange\', \'{"id": "x", "turns": [null]}\')')
    page.open()
    page.wait(READY)
    titles = "#conversations .title"
    assert text(page, titles) == ["白日依山尽，黄河入海流。", LINE]
    page.click(titles, 1)
    assert text(page, ".said") == [LINE, NEXT]
    page.hover(".assistant .word", 1)
    assert text(page, "#alternatives .chosen th") == [NEXT[1]]
    page.click("#conversations [title^=Rename]", 1)
    page.wait("document.querySelector('#dialog').open")
    page.type("Spring <i>")
    page.key("Enter")
    page.wait(f"document.querySelectorAll('{titles}')[1].textContent === 'Spring <i>'")
    page.click("#conversations [title^=Delete]", 0)
    page.key("Escape")
    assert len(text(page, titles)) == 2
    for left in (1, 0):
        page.click("#conversations [title^=Delete]", 0)
        page.click("#dialog-accept")
        page.wait(f"document.querySelectorAll('{titles}').length === {left}")
    assert text(page, ".said") == []
    kept = page.run("Object.keys(localStorage).filter(key => key.includes('conversation'))")
    assert sorted(kept) == ["glm-export.conversation.damaged", "glm-export.conversation.strange"]


def test_parameters_are_sent_and_errors_are_one_line(page: Page) -> None:
    for name, value in {"top_p": "0.5", "top_k": "3", "max_tokens": "4", "seed": "-7", "system": "Be brief."}.items():
        put(page, name, value)
    say(page, LINE)
    page.wait("!document.querySelector('#error').hidden")
    sent = posted(page, CHATS)[0]
    assert [sent[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "seed")] == [0, 0.5, 3, 4, -7]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert sent["logprobs"] is True
    # This model's prompt has no place for it, and the server says so.
    assert "role 'system' is not in this model's prompt" in text(page, "#error-text")[0]
    assert page.run("document.querySelector('#error').offsetHeight") < 50
    assert text(page, ".assistant") == []
    page.run("document.querySelector('[name=system]').value = ''")
    page.run("document.querySelector('[name=alternatives]').click()")
    press(page, "Retry")
    answered(page)
    assert page.run("document.querySelector('#error').hidden")
    assert text(page, ".said") == [LINE, NEXT[:4]]
    assert "cut at its length" in text(page, ".assistant .stats")[0]
    assert text(page, ".word") == []
    assert "logprobs" not in posted(page, CHATS)[1]
    put(page, "top_p", "7")
    put(page, "tools", "{}")
    press(page, "Retry")
    assert text(page, "#error-text") == ["top_p is not a number the field takes."]


def test_blanks_are_seen_and_filled_ones_marked(page: Page, server: str) -> None:
    page.run("document.querySelector('#model').focus()")
    page.key("End")
    page.wait(f"{READY} === 'demo-glm' && !document.querySelector('#insert').hidden")
    say(page, "no blank")
    page.wait("document.querySelector('#error-text').textContent.startsWith('There is no blank')")
    page.run("document.querySelector('#text').select()")
    page.type("春眠不觉晓，")
    page.click("[data-blank='[MASK]']")
    page.type("夜来风雨声，")
    page.click("[data-blank='[MASK]']")
    assert page.run("document.querySelector('#text').value") == BLANKS
    assert text(page, ".blank-name") == ["[MASK]", "[MASK]"]
    page.key("Enter")
    answered(page)
    assert text(page, ".user .blank") == ["", ""]
    expected = httpx.post(f"{server}/v1/infill", json={"model": "demo-glm", "text": BLANKS, "temperature": 0}).json()
    assert text(page, "mark") == expected["fills"]
    assert text(page, ".assistant .said") == [expected["text"]]
    press(page, "Retry", 1)
    page.wait(f"{DONE} && document.querySelector('.assistant .version')")
    # Chat is offered too; GLM says that it learned none.
    page.click("input[value=chat]")
    say(page, LINE)
    page.wait("document.querySelector('#error-text').textContent.includes('was trained on no conversations')")


def test_the_key_is_asked_for_and_kept_for_the_tab(pages: Pages, start: Callable[..., Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right\n")
    with start("demo", "--api-key-file", str(keys)) as (address, _):
        page = pages(address)
        page.wait("document.querySelector('#dialog').open")
        page.type("wrong")
        page.key("Enter")
        page.wait("document.querySelector('#dialog-text').textContent.includes('does not know')")
        page.type("right")
        page.key("Enter")
        page.wait(READY)
        assert page.run("Object.values(sessionStorage)") == ["right"]
        assert "right" not in page.run("JSON.stringify(localStorage)")
        page.open()
        page.wait(READY)
        say(page, LINE)
        answered(page)
        assert page.complaints() == []


STREAM = [
    {"reasoning_content": "Weather <i>is</i> asked for."},
    {"content": "<img src=x onerror=document.title='gone'>"},
    {"tool_calls": [{"index": 0, "id": "c0", "type": "function", "function": {"name": "weather", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Beijing"}'}}]},
]


def test_thoughts_and_calls_are_shown_and_markup_is_text(page: Page) -> None:
    """The embedded models do neither: the server's answer is put in the place of one."""

    def event(delta: dict[str, Any], reason: str | None = None) -> str:
        chunk = {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        return f"data: {json.dumps(chunk)}\n\n"

    body = "".join(map(event, STREAM)) + event({}, "tool_calls") + "data: [DONE]\n\n"
    broken = event({"content": "Half"}) + 'data: {"error": {"message": "the step\\nfailed"}}\n\ndata: [DONE]\n\n'
    page.answer_instead(CHATS)
    say(page, LINE)
    page.fulfil(body)
    answered(page)
    assert text(page, ".assistant .thought .words") == ["Weather <i>is</i> asked for."]
    assert text(page, ".assistant .said") == ["<img src=x onerror=document.title='gone'>"]
    assert page.run("document.querySelectorAll('.turn :is(img, i)').length") == 0
    assert page.run("document.title") == "glm-export"
    assert text(page, ".call summary") == ["Calls weather"]
    assert json.loads(text(page, ".call pre")[0]) == {"city": "Beijing"}
    page.click(".answer textarea")
    page.type("Sunny")
    page.click(".answer button")
    page.fulfil(broken)
    answered(page, 2)
    assert [one["role"] for one in posted(page, CHATS)[1]["messages"]] == ["user", "assistant", "tool"]
    assert posted(page, CHATS)[1]["messages"][2]["tool_call_id"] == "c0"
    assert text(page, "#error-text") == ["the step failed"]
    assert text(page, ".assistant .said")[1] == "Half"
    assert "broken off" in text(page, ".assistant .stats")[1]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_a_phone_in_chinese_by_day_and_night(pages: Pages, server: str, dark: bool) -> None:
    page = pages(server, width=390, height=844, dark=dark, language="zh-CN")
    page.wait(READY)
    assert page.run("document.documentElement.lang") == "zh-CN"
    assert text(page, "#send") == ["发送"]
    ground = "getComputedStyle(document.body).backgroundColor"
    day, night = "rgb(255, 255, 255)", "rgb(20, 23, 28)"
    assert page.run(ground) == (night if dark else day)
    page.click("#theme")
    assert page.run(ground) == (day if dark else night)
    page.open()
    page.wait(READY)
    assert page.run(ground) == (day if dark else night)
    page.click("#theme")
    assert page.run(ground) == (night if dark else day)
    assert page.run("localStorage.getItem('glm-export.theme')") is None
    say(page, LINE * 12)
    answered(page)
    page.click(".assistant .word", 1)
    page.wait("!document.querySelector('#alternatives').hidden")
    box = "document.querySelector('#alternatives').getBoundingClientRect()"
    assert 0 <= page.run(f"{box}.left") <= page.run(f"{box}.right") <= 390
    for name in ("history", "settings"):
        assert page.run(f"getComputedStyle(document.querySelector('#{name}')).display") == "none"
        page.click(f"#open-{name}")
        assert page.run("document.querySelector('main').inert")
        assert page.run(f"document.querySelector('#{name}').contains(document.activeElement)")
        wide = f"document.querySelector('#{name}').scrollWidth > document.querySelector('#{name}').clientWidth"
        assert not page.run(wide)
        page.key("Escape")
        assert page.run("document.activeElement.id") == f"open-{name}"
    assert page.run("document.documentElement.scrollWidth") == 390
    assert page.run("document.querySelector('#transcript').scrollWidth") <= 390
    small = "[...document.querySelectorAll('button')].filter(one => one.offsetParent && one.offsetHeight < 24).length"
    assert page.run(small) == 0
    assert page.complaints() == []


def nameless(page: Page) -> list[str]:
    """What can be reached by keys and has no name to be called by."""
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "combobox", "spinbutton", "checkbox", "radio", "link", "group", "navigation", "log"}
    return [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored") and node["role"]["value"] in roles and not node.get("name", {}).get("value")
    ]


def test_everything_has_a_name_to_those_who_listen(page: Page) -> None:
    say(page, LINE)
    answered(page)
    page.send("Accessibility.enable")
    assert nameless(page) == []
    page.run("document.querySelector('#open-history').removeAttribute('aria-label')")
    page.run("document.querySelector('#open-history').removeAttribute('title')")
    assert nameless(page) == ["button"]
    # By the tab key alone: from the skip link to the field, and on.
    page.open()
    page.wait(READY)
    page.key("Tab")
    assert page.run("document.activeElement.className") == "skip"
    page.key("Enter")
    page.wait("location.hash === '#text'")
    page.key("Tab")
    assert page.run("['send', 'text'].includes(document.activeElement.id)")
