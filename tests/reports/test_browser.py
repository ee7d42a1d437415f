"""A report as a browser shows it: the verdict can be read, nothing is asked for, nothing runs, nothing is cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glm_export import api
from glm_export.artifacts.program import OnnxProgram
from glm_export.reports.files import require_report
from glm_export.reports.run import Stopwatch, program_subject
from glm_export.reports.verbs.check import check_report
from tests.helpers.browser import Page, opened_browser
from tests.helpers.planted import plant
from tests.reports.examples import HOSTILE, report

SCREENS = [(width, dark) for width in (400, 1400) for dark in (False, True)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Page]]:
    with opened_browser(tmp_path_factory.mktemp("browser")) as pages:
        yield pages


@pytest.fixture(scope="module")
def addresses(
    browser: Callable[..., Page], demo_program: OnnxProgram, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """A passing report, a failing one, and one whose every text means harm."""
    folder = tmp_path_factory.mktemp("reports")
    programs = {"passed": demo_program, "failed": plant(demo_program, "half-split rotary", folder / "planted")}
    found = {"hostile": report(HOSTILE, passed=False)}
    for name, program in programs.items():
        subject = program_subject(program, "demo")
        found[name] = check_report(api.check(program, "demo"), subject, Stopwatch("glm-export check").run())
    for name, one in found.items():
        require_report(folder / f"{name}.html", force=False).write(one)
    return {name: (folder / f"{name}.html").as_uri() for name in found}


def seen(page: Page, selector: str) -> str:
    return page.run(f"document.querySelector('{selector}').innerText")


@pytest.mark.parametrize(("width", "dark"), SCREENS)
@pytest.mark.parametrize("name", ["passed", "failed", "hostile"])
def test_the_verdict_can_be_read(
    name: str, width: int, dark: bool, browser: Callable[..., Page], addresses: dict[str, str]
) -> None:
    page = browser(addresses[name], width=width, dark=dark)
    assert seen(page, "#verdict") == ("PASSED" if name == "passed" else "FAILED")
    top = page.run("document.querySelector('#verdict').getBoundingClientRect().bottom")
    assert 0 < top < 200
    # Nothing is wider than the screen, with all that is folded opened as well.
    page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.run("document.documentElement.scrollWidth") == width
    wide, narrow = (page.run(f"document.querySelector('.{size}').offsetHeight") for size in ("wide", "narrow"))
    assert (wide > 0, narrow > 0) == (width > 640, width <= 640)
    assert page.run("getComputedStyle(document.documentElement).backgroundColor") == (
        "rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)"
    )
    # The page's own address, and no other.
    assert set(page.requests()) == {addresses[name]}
    assert page.complaints() == []


def test_what_failed_is_told_apart_without_colour(browser: Callable[..., Page], addresses: dict[str, str]) -> None:
    page = browser(addresses["failed"])
    marks = page.run("[...document.querySelectorAll('.claims .mark')].map(one => one.innerText)")
    assert marks.count("✗ failed") == 7
    assert marks.count("✓ passed") == 1
    parted = page.run("document.querySelectorAll('mark').length")
    assert parted == 2 * page.run(
        "[...document.querySelectorAll('.seen')].filter(o => /^They part/.test(o.innerText)).length"
    )


def test_nothing_that_a_text_says_is_done(browser: Callable[..., Page], addresses: dict[str, str]) -> None:
    page = browser(addresses["hostile"])
    assert page.run("document.scripts.length") == 0
    assert page.run("document.title").startswith("FAILED")
    assert "<script>" in seen(page, "h1")


def test_the_policy_holds_scripts_and_addresses_back(browser: Callable[..., Page], tmp_path: Path) -> None:
    """Were a text to become markup after all: the same page with a script and a picture planted."""
    asked = require_report(tmp_path / "a.html", force=False)
    asked.write(report())
    text = asked.page.read_text(encoding="utf-8")
    planted = "<script>document.title = 'run'</script><img src='http://127.0.0.1:9/x.png'><p style='color: red'>x</p>"
    for policy, runs in ((True, False), (False, True)):
        body = text.replace("</main>", f"{planted}</main>")
        body = body if policy else body.replace('http-equiv="Content-Security-Policy"', 'name="policy"')
        path = tmp_path / f"{runs}.html"
        path.write_text(body, encoding="utf-8")
        page = browser(path.as_uri())
        assert (page.run("document.title") == "run") is runs
        blocked = [one["params"].get("blockedReason") for one in page.events("Network.loadingFailed")]
        assert ("csp" in blocked) is policy
        assert (page.complaints() == []) is runs
