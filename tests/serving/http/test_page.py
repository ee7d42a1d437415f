"""The page's files as they are sent: nothing from elsewhere, no markup out of strings, open without a key."""

from __future__ import annotations

import itertools
import re

import httpx
import pytest

from glm_export.serving.http.app import create_app
from glm_export.serving.http.doors.page import FILES, FOLDER
from glm_export.serving.options import ServeOptions
from tests.helpers.http_servers import HERE, answered

TEXTS = {name: body.decode() for name, body in FILES.items()}
SCRIPTS = [name for name in FILES if name.endswith(".js")]
LONGEST_FILE, MOST_FILES = 400, 12
POLICY = {
    "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "img-src": "'self'",
    "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'", "trusted-types": "'none'",
}  # fmt: skip


def asked(*paths: str, key: str | None = None, **headers: str) -> list[httpx.Response]:
    """Answers of a server that wants a key and has no models."""
    app = create_app({}, ServeOptions(), frozenset({"secret"}))
    headers |= {"authorization": f"Bearer {key}"} if key else {}
    return answered(app, *(httpx.Request("GET", f"{HERE}{path}", headers=headers) for path in paths))


def test_every_file_is_sent_with_its_type_and_the_policy() -> None:
    assert sorted(FILES) == sorted(
        path.relative_to(FOLDER).as_posix()
        for path in FOLDER.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    )
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for name, answer in zip(FILES, asked(*(f"/page/{name}" for name in FILES)), strict=True):
        assert answer.status_code == 200
        assert answer.content == FILES[name]
        assert answer.headers["content-type"].split(";")[0] == types[name.rpartition(".")[2]]
        found = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert found == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
    (index,) = asked("/")
    assert index.text == TEXTS["index.html"]
    (same,) = asked("/", **{"if-none-match": index.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


def test_the_page_is_open_and_nothing_else_with_it() -> None:
    doors = ["/v1/models", "/metrics", "/page/../v1/models", "/page/%2e%2e/v1/models", "/page/..%2fv1/models"]
    for answer in asked(*doors):
        assert answer.status_code in (401, 404), answer.url
        assert "fills_blanks" not in answer.text
    strange = [
        "/page/",
        "/page/__init__.py",
        "/page/../http/guard.py",
        "/page/scripts",
        "/page//etc/passwd",
        "/page/%00",
    ]
    assert [answer.status_code for answer in asked(*strange, key="secret")] == [404] * len(strange)


def test_what_it_refers_to_is_there_and_nothing_is_from_elsewhere() -> None:
    html = TEXTS["index.html"]
    assert all(f"page/{name}" in html for name in FILES if name.startswith("styles/"))
    for target in re.findall(r'(?:src|href)="(?!#)([^"]+)"', html):
        assert target.removeprefix("page/") in FILES
    for name in SCRIPTS:
        for target in re.findall(r' from "\./([^"]+)"', TEXTS[name]):
            assert f"scripts/{target}" in FILES
    for text in TEXTS.values():
        assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
        assert "@import" not in text
        assert "url(" not in text


def test_no_markup_is_made_of_strings() -> None:
    """The policy would refuse it; where a browser does not know trusted types there is none all the same."""
    for name in SCRIPTS:
        banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser"
        assert re.findall(banned, TEXTS[name]) == []
    html = TEXTS["index.html"]
    assert re.findall(r"\son\w+=|\sstyle=|<style|<script>|javascript:", html) == []


@pytest.mark.parametrize("language", ["en", '"zh-CN"'])
def test_every_word_is_said_in_both_languages(language: str) -> None:
    text = TEXTS["scripts/words.js"]
    block = text.split(f"  {language}: {{", 1)[1].split("\n  },", 1)[0]
    said = set(re.findall(r'(?:^|[,\s])"?([\w-]+)"?:\s+"', block))
    used = set(re.findall(r'data-(?:word|label)="([\w-]+)"', TEXTS["index.html"]))
    for name in SCRIPTS:
        used |= set(re.findall(r'word\("([\w-]+)"', TEXTS[name]))
    used |= {"hint-chat", "hint-blanks", "reason_length", "reason_stopped", "reason_error"}
    assert used - said == set()


def test_its_files_are_small_and_few() -> None:
    assert [name for name, text in TEXTS.items() if text.count("\n") > LONGEST_FILE] == []
    for _, names in itertools.groupby(sorted(FILES), key=lambda name: name.rpartition("/")[0]):
        assert len(list(names)) <= MOST_FILES


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(theme: int) -> None:
    """4.5 : 1 for text, 3 : 1 for the edges of what is filled in."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", TEXTS["styles/colours.css"])
    colour = {name: pair[theme] for name, *pair in pairs}
    grounds = ("ground", "side", "raised", "tint")
    text = [(ink, ground) for ink in ("ink", "faint", "accent") for ground in grounds]
    text += [("ink", "blank"), ("ink", "filled"), ("on-accent", "accent"), ("wrong-ink", "wrong")]
    low = {pair: contrast(*(colour[name] for name in pair)) for pair in text}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}
    edges = [
        ("edge", "ground"),
        ("edge", "raised"),
        ("edge", "side"),
        ("blank-edge", "blank"),
        ("filled-edge", "filled"),
    ]
    assert [pair for pair in edges if contrast(*(colour[name] for name in pair)) < 3] == []
    assert contrast("#ffffff", "#777777") < 4.5 < contrast("#ffffff", "#767676")
