"""The reference's pages, made of the code: every public name, every record of options, every verb and its options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import isclass
from typing import Any

import click

import glm_export
from glm_export.cli import VERBS, Verb

RECORDS = {
    "export": ("exporter.options", "ExportOptions"),
    "check": ("proof.options", "CheckOptions"),
    "calibrate": ("calibration.options", "CalibrationOptions"),
    "quality": ("evaluation.options", "QualityOptions"),
    "bench": ("performance.report", "BenchOptions"),
    "build": ("deployment.request", "BuildRequest"),
}
"""Functions and the records of options they take, by their modules in ``glm_export``."""
API = """# Python

The public names of `glm_export`; each is imported when it is first used. What is not on this page may change without a
word. Functions that take options take them as keywords, or as one record:

```python
from glm_export import export
from glm_export.exporter.options import ExportOptions

export("demo", "poems-onnx", dialect="ort", force=True)
export("demo", "poems-onnx", ExportOptions(dialect="ort"), force=True)
```
"""
COMMANDS = """# Commands

Every verb and option, as `glm-export VERB --help` says them. MODEL, CHECKPOINT and SOURCE are folders, URLs of folders
([store](../store.md)), or the embedded models `demo` and `demo-glm`.

Exit codes: 0 done, 1 a comparison failed, 2 usage or input, 3 environment, or a fault of glm-export.
"""


def api_page() -> str:
    """Markdown for mkdocstrings: a section for functions, for classes, and for records of options."""
    names = [name for name in glm_export.__all__ if not name.startswith("__")]
    classes = [name for name in names if isclass(getattr(glm_export, name))]
    sections = [
        ("Functions", [f"glm_export.{name}" for name in names if name not in classes]),
        ("Classes", [f"glm_export.{name}" for name in classes]),
        ("Options", [f"glm_export.{module}.{record}" for module, record in RECORDS.values()]),
    ]
    lines = [API]
    for title, paths in sections:
        lines += [f"## {title}", "", *(f"::: {path}\n" for path in paths)]
    lines += ["## Version", "", "`glm_export.__version__` is the installed version, a text."]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """A section a verb, made of what its parser knows."""
    lines = [COMMANDS]
    for name in sorted(VERBS):
        lines += _verb(name, Verb(name=name, help=VERBS[name]).load())
    return "\n".join(lines) + "\n"


def _verb(name: str, command: click.Command) -> Iterator[str]:
    yield from (f"## {name}", "", _text(command.help or VERBS[name]), "")
    yield from _usage(f"glm-export {name}", command)
    if isinstance(command, click.Group):
        for inner, found in sorted(command.commands.items()):
            yield from (f"### {name} {inner}", "", _text(found.help or ""), "")
            yield from _usage(f"glm-export {name} {inner}", found)


def _usage(line: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=line)
    yield from ("```text", f"{line} {' '.join(command.collect_usage_pieces(context))}", "```", "")
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if not options:
        return
    yield from ("| option | what |", "|---|---|")
    for option in options:
        yield f"| {_spelled(option, context)} | {_cell(option.help or '')}{_default(option)} |"
    yield ""


def _spelled(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    value = "" if option.is_flag else f" `{option.make_metavar(context).removesuffix(' RANGE')}`".replace("|", "\\|")
    return names + value + (" (required)" if option.required else "") + (" (several)" if option.multiple else "")


def _default(option: click.Option) -> str:
    value: Any = option.default
    shown = option.show_default and not option.is_flag and isinstance(value, str | int | float)
    return f" Default: `{value}`." if shown else ""


def _text(help_: str) -> str:
    """A docstring's paragraphs, each in one line."""
    paragraphs = re.split(r"\n\s*\n", help_.replace("\b", "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _cell(text: str) -> str:
    return _text(text).replace("\n\n", " ").replace("|", "\\|").replace("<", "&lt;")
