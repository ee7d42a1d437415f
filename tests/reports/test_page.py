"""The page: whole in one file, nothing in it runs, and the same report is the same page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from glm_export.reports import page as pages
from glm_export.reports.colours import NAMES
from glm_export.reports.page import page, policy, shown_token
from glm_export.reports.records import SCHEMA, Piece, figure
from tests.reports.examples import HOSTILE, report

ROOT = Path(__file__).parents[2]
STYLES = (Path(pages.__file__).parent / "page" / "report.css").read_text(encoding="utf-8")
ADDRESSES = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
LANDMARKS = {"html", "head", "body", "main", "header", "footer", "section", "style", "title"}


class Read(HTMLParser):
    """Elements and their attributes, and the text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.style, self._in, self.open = "", "", "", list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._in = tag
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "style":
            self.style += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def hostile() -> Read:
    return Read(page(report(HOSTILE, passed=False)))


def test_a_page_is_whole_and_asks_for_nothing(hostile: Read) -> None:
    assert not hostile.open
    assert {"html", "main", "svg", "table", "details", "mark"} <= {tag for tag, _ in hostile.elements}
    for tag, attributes in hostile.elements:
        assert tag not in ("script", "iframe", "object", "embed", "link", "img", "base", "form", "input"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            # Within an SVG, what a mark looks like.
            assert name not in ADDRESSES or str(value).startswith("#"), (tag, name, value)
            assert name != "style", tag
    assert "@import" not in hostile.style
    assert "url(" not in hostile.style


def test_hostile_text_stays_text(hostile: Read) -> None:
    """Wherever a folder or a checkpoint brings text in; and nothing turns the direction of writing."""
    shown = hostile.text
    assert shown.count("<script>") > 20
    assert "{{ 7 * 7 }}" in shown
    assert not {"\u202e", "\x1b"} & set(shown)
    assert r"\u202e" in shown
    assert "<title>FAILED" in page(report(HOSTILE, passed=False))


def test_the_policy_names_the_one_block_of_styles(hostile: Read) -> None:
    (said,) = [a["content"] for tag, a in hostile.elements if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(hostile.style.encode()).digest()).decode()
    assert said == policy(STYLES)
    assert said is not None
    assert said.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}';" in said
    assert "unsafe" not in said


def test_the_same_report_is_the_same_page() -> None:
    script = (
        "from tests.reports.examples import report; from glm_export.reports.page import page; print(page(report()))"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.rstrip("\n") == page(report()).rstrip("\n")
    assert page(report()) != page(report("another"))


def test_every_number_has_its_meaning_and_every_plot_its_text() -> None:
    read = Read(page(report()))
    plots = [attributes for _, attributes in read.elements if attributes.get("role") == "img"]
    assert len(plots) == 4 + 1  # the claims' own
    assert all(attributes["aria-label"] for attributes in plots)
    assert read.text.count("What it means.") == 4 + 1  # a plot each, and the claim
    # Numbers behind each plot, and the table itself.
    assert sum(tag == "table" for tag, _ in read.elements) == 5
    identifiers = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    named = {a["aria-labelledby"] for _, a in read.elements if "aria-labelledby" in a}
    assert named <= set(identifiers)


@pytest.mark.parametrize(("passed", "word"), [(True, "PASSED"), (False, "FAILED"), (None, "MEASURED")])
def test_the_verdict_is_the_first_thing(passed: bool | None, word: str) -> None:
    written = page(report(passed=passed))
    assert f'<span id="verdict">{word}</span>' in written
    assert f"<title>{word} – check a text</title>" in written


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_from_what_they_stand_on(theme: str) -> None:
    """WCAG 2.2: text 4.5 : 1, marks of a plot 3 : 1."""
    light, dark = STYLES.split("@media (prefers-color-scheme: dark)")[:2]
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if theme == "light" else dark.split("\n* {")[0]))
    assert set(NAMES) <= found.keys()
    for text in ("ink", "faint", "accent", "good", "bad", "calm"):
        assert contrast(found[text], found["ground"]) >= 4.5, text
    for text, ground in (
        ("ink", "raised"), ("faint", "raised"), ("good", "good-ground"), ("bad", "bad-ground"), ("calm", "calm-ground"),
        ("faint", "bad-ground"), ("faint", "calm-ground"), ("ink", "good-ground"), ("mark-ink", "mark"),
    ):  # fmt: skip
        assert contrast(found[text], found[ground]) >= 4.5, (text, ground)
    for mark in [name for name in NAMES if name.startswith("series") or name in ("planted", "over-1", "heat-7")]:
        assert contrast(found[mark], found["ground"]) >= 3, mark
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    heat = [luminance(found[f"heat-{number}"]) for number in range(8)]
    assert heat == sorted(heat, reverse=theme == "light")


def test_json_is_whole_and_has_a_schema() -> None:
    values: dict[str, Any] = json.loads(json.dumps(report().to_json(), allow_nan=False))
    assert values["schema"] == SCHEMA == "glm-export/report/1"
    assert values["measured"]["kl"] == "Infinity"
    assert [item["kind"] for item in values["sections"][0]["items"]] == [
        "table", "heat", "lines", "bars", "spans", "texts",
    ]  # fmt: skip
    assert values["sections"][0]["items"][1]["values"][1][1] == "Infinity"
    assert values["claims"][0]["verdict"] == "passed"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (True, "yes"), (0.0, "0"), (8.8e-7, "8.8e-7"), (1e-5, "1e-5"), (0.02, "0.02"), (2.7274, "2.727"),
        (1234.0, "1,234"), (65504.0, "65,504"), (1e6, "1e6"), (12345, "12,345"), (float("inf"), "infinite"),
        (float("-inf"), "minus infinite"), (float("nan"), "not a number"), (-3e-4, "-3e-4"),
    ],
)  # fmt: skip
def test_figures_for_people(value: Any, shown: str) -> None:
    assert figure(value) == shown


def test_tokens_that_cannot_be_seen_are_shown() -> None:
    texts = ["春", " ", "\n\t", "", None, "a b"]
    assert [shown_token(Piece(text=text, number=7)) for text in texts] == ["春", "␣", "⏎⇥", "∅", "#7", "a b"]
