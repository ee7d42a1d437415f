"""What MkDocs is told besides ``mkdocs.yml``: pages outside ``docs/``, links that fit both places, pages of the code.

Links in the repository's pages are paths in the repository, as GitHub follows them. On the site the same pages lie
elsewhere: each link is rewritten to where its target is there. A file that is no page is copied along, and what leads
nowhere is left as it is, so that ``mkdocs build --strict`` says so.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference import api_page, commands_page

ROOT = Path(__file__).parents[2]
OUTSIDE = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
MEASUREMENTS = "benchmarks/*/README.md"
HOME = "index.md"
COPIED = "files"
"""The folder of files that are no pages."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
ESCAPED_PIPE = re.compile(r"`[^`\n]*\\\|[^`\n]*`")


def outside_pages() -> list[str]:
    """Paths in the repository of pages that do not lie in ``docs/``."""
    return [*OUTSIDE, *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(MEASUREMENTS))]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write out what ``FOLDER/*`` stands for in the navigation."""
    config.nav = [_written_out(entry) for entry in config.nav or []]
    return config


def _written_out(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _children(inner) for title, inner in entry.items()}
    return entry


def _children(inner: Any) -> Any:
    if isinstance(inner, list):
        return [_written_out(entry) for entry in inner]
    if not inner.endswith("/*"):
        return inner
    folder = inner.removesuffix("/*")
    found = sorted((ROOT / "docs" / folder).glob("*.md")) or sorted(ROOT.glob(MEASUREMENTS))
    names = [repository_uri(str(path.relative_to(ROOT))) for path in found]
    return [f"{folder}/{HOME}", *names]


def repository_uri(path: str) -> str:
    """Where a file of the repository is on the site.

    Args:
        path: from the repository's root.
    """
    if path in (".", "README.md", "docs"):
        return HOME
    if path.startswith("docs/"):
        path = path.removeprefix("docs/")
        return f"{path}/{HOME}" if (ROOT / "docs" / path).is_dir() else path
    if path == "benchmarks":
        return f"{path}/{HOME}"
    if (ROOT / path / "README.md").is_file():
        path = f"{path}/README.md"
    if path.startswith("benchmarks/") and path.endswith("/README.md"):
        # MkDocs takes a README for its folder's index.
        return f"benchmarks/{path.split('/')[1]}.md"
    return path if path in OUTSIDE else f"{COPIED}/{path}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside, those of the code, lists of the folders that have none, and what is linked besides."""
    for path in outside_pages():
        files.append(File.generated(config, repository_uri(path), abs_src_path=str(ROOT / path)))
    made = {
        "reference/api.md": api_page(),
        "reference/commands.md": commands_page(),
        f"adr/{HOME}": _list("Decisions", "adr", sorted((ROOT / "docs/adr").glob("*.md"))),
        f"benchmarks/{HOME}": _list("Measurements", "benchmarks", sorted(ROOT.glob(MEASUREMENTS))),
    }
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    for path in sorted(_linked_files()):
        files.append(File.generated(config, f"{COPIED}/{path}", abs_src_path=str(ROOT / path)))
    return files


INTRODUCTIONS = {
    "Decisions": "Why things are as they are: one page a decision, with what follows from it and how to undo it.",
    "Measurements": "What was measured, by which command, on which machine; beside a peer where there is one.",
}


def _list(title: str, folder: str, paths: list[Path]) -> str:
    """A page of links."""
    lines = [f"# {title}", "", INTRODUCTIONS[title], ""]
    for path in paths:
        name = posixpath.relpath(repository_uri(str(path.relative_to(ROOT))), folder)
        lines.append(f"- [{_title(path)}]({name})")
    return "\n".join(lines) + "\n"


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _linked_files() -> set[str]:
    """Paths in the repository of files that some page links to, and that are no pages."""
    pages = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
    found = set()
    for page in [*pages, *outside_pages()]:
        for target, _ in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            if repository_uri(path).startswith(f"{COPIED}/") and (ROOT / path).is_file():
                found.add(path)
    return found


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs'
    """A page as the site has it."""
    own = next((path for path in outside_pages() if repository_uri(path) == page.file.src_uri), None)
    text = relinked(markdown, own or f"docs/{page.file.src_uri}")
    # In a table GitHub wants a bar escaped within code as well; Python-Markdown shows the backslash.
    return ESCAPED_PIPE.sub(lambda found: _bars(found[0]), text)


def _bars(code: str) -> str:
    return f"<code>{code.strip('`').replace('<', '&lt;').replace('>', '&gt;').replace(chr(92) + '|', '&#124;')}</code>"


def relinked(markdown: str, path: str) -> str:
    """A page's text with links to where their targets are on the site.

    Args:
        markdown: the text, with links as GitHub follows them.
        path: of the page, from the repository's root.
    """
    here = posixpath.dirname(repository_uri(path) if path in outside_pages() else path.removeprefix("docs/"))

    def moved(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[1]))
        if not (ROOT / target).exists():
            return found[0]
        return posixpath.relpath(repository_uri(target), here or ".") + (found[2] or "")

    return LINK.sub(moved, markdown)
