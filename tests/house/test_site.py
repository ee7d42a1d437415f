"""The documentation as a site: built without a warning, every link leads somewhere, nothing comes from elsewhere."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import glm_export
from glm_export.cli import VERBS
from glm_export.reports.records import figure
from glm_export.spec.option import options_of

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "docs" / "tools"
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "audio": "src"}
"""What a browser asks for by itself, and where it says what; of links those of styles and icons."""
PLANTED = {
    "nowhere.md": "leads nowhere: [gone](gone.md)\n",
    "heading.md": "no such heading: [away](index.md#no-such-heading)\n",
    "left-out.md": "in no navigation\n",
}


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """MkDocs over a configuration, each warning an error."""
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "true", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: the extra `docs` brings it")
    folder = tmp_path_factory.mktemp("site")
    result = build(ROOT / "mkdocs.yml", folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


class Elements(HTMLParser):
    """Links, names and what is loaded, of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.names |= {found[name] for name in ("id", "name") if name in found}
        address = found.get(LOADED.get(tag, ""))
        if address is not None and found.get("rel", "stylesheet") in ("stylesheet", "icon", "preload"):
            self.loaded.append(address)
        if tag == "a" and "href" in found:
            self.links.append(found["href"])


def pages(site: Path) -> dict[Path, Elements]:
    return {path: Elements(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def broken(found: dict[Path, Elements]) -> Iterator[str]:
    """Links and loads of a built site that lead nowhere in it; those to other sites are not followed."""
    for path, page in found.items():
        for address in (*page.links, *page.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or (path.name == "404.html" and address.startswith("/")):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{path.name}: {address} is not there"
            elif parts.fragment and target in found and unquote(parts.fragment) not in found[target].names:
                yield f"{path.name}: {address} has no such place"


def test_every_link_leads_somewhere(site: Path) -> None:
    """Counted a second time, on what was built."""
    found = pages(site)
    assert len(found) > 50
    assert list(broken(found)) == []
    planted = {site / "index.html": Elements('<a href="gone.html">x</a><a href="#gone">x</a><img src="gone.png">')}
    assert len(list(broken(planted))) == 3


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """A site that is read without a network."""
    loaded = {address for page in pages(site).values() for address in page.loaded}
    assert len(loaded) > 10
    assert [address for address in loaded if urlsplit(address).scheme not in ("", "data")] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert [found for found in re.findall(r"url\(([^)]+)\)", styles) if "//" in found and "data:" not in found] == []


def test_pages_are_read_as_they_were_meant(site: Path) -> None:
    """What GitHub reads as a list, a table or a fence, and Python-Markdown as words."""
    for path in sorted(site.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        if "/files/" in str(path):
            continue
        unseen = re.findall(r"<p>(?:[^<]|<(?!/p>))*?\n(?:- |\* |\d+\. |\| |```).*", text)
        assert unseen == [], f"{path.relative_to(site)}: a blank line is missing before {unseen[0][:80]!r}"


def test_the_reference_has_every_public_name(site: Path) -> None:
    page = site / "reference" / "api.html"
    names, text = pages(site)[page].names, plain(page)
    missing = [name for name in glm_export.__all__ if f"glm_export.{name}" not in {*names, "glm_export.__version__"}]
    assert missing == []
    assert "glm_export.__version__" in text
    for function, (module, record) in tool("reference").RECORDS.items():
        assert function in glm_export.__all__
        assert f"glm_export.{module}.{record}" in names
        kind = getattr(import_module(f"glm_export.{module}"), record)
        for option, (_, said) in options_of(kind).items():
            assert f"{option} – {words(said.help)}" in text, (record, option)


def plain(page: Path) -> str:
    """What a reader sees of a page, in one line."""
    return words(unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))))


def words(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def tool(name: str) -> ModuleType:
    """One of the scripts that make the pages and their pictures."""
    sys.path.insert(0, str(TOOLS))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


def test_the_reference_has_every_verb_and_option(site: Path) -> None:
    found = pages(site)[site / "reference" / "commands.html"]
    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert set(VERBS) <= found.names
    for option in ("--prefill-memory", "--reference-dtype", "--implicit-int8", "--speculate"):
        assert f"<code>{option}</code>" in text, option


def test_what_is_broken_ends_the_build(site: Path, tmp_path: Path) -> None:
    """The same rules over three pages that break them."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Home\n")
    for name, text in PLANTED.items():
        (docs / name).write_text(f"# {name}\n\n{text}")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\nsite_name: planted\ndocs_dir: docs\nhooks: []\nplugins: []\nextra_css: []\n"
        "nav:\n  - index.md\n  - nowhere.md\n  - heading.md\n"
    )
    result = build(config, tmp_path / "site")
    assert result.returncode == 1, result.stdout + result.stderr
    for said in ("'gone.md'", "no-such-heading", "left-out.md"):
        assert said in result.stderr, said


def test_pictures_are_small_and_what_their_scripts_draw() -> None:
    """And load nothing: an SVG with a font from a server is another picture where there is none."""
    for path in (ROOT / "docs" / "images").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert len(text.encode()) < 150_000, path.name
        assert re.findall(r"url\((?!#)[^)]*\)|<script|@import|href=\"(?!#)", text) == [], path.name
    assert (ROOT / "docs" / "images" / "pipeline.svg").read_text(encoding="utf-8") == tool("pipeline").drawing()
    drawn = (ROOT / "docs" / "images" / "recipes.svg").read_text(encoding="utf-8")
    with (ROOT / "docs" / "images" / "recipes.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    for row in rows:
        told = dict(zip(head, row, strict=True))
        shown = (told["program"], *(figure(float(told[name])) for name in ("size, MB", "KL, nats a token")))
        assert all(f">{text}<" in drawn for text in shown), shown
