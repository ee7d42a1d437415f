"""The verb ``inspect`` and its table."""

from __future__ import annotations

from typing import Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.terminal.console import MODEL, RESULTS, adapter_option, family_option, json_option, show_json, size
from glm_export.terminal.frame.tables import show_facts_grid


@click.command()
@click.argument("folder", type=MODEL)
@family_option
@adapter_option
@click.option("--polygraphy", is_flag=True, help="Of an exported folder: the line that runs it in Polygraphy.")
@json_option()
def inspect(folder: str, family: str | None, adapters: tuple[str, ...], polygraphy: bool, as_json: bool) -> None:
    """Say what FOLDER is: a checkpoint (audited), an exported program, an engine or ranges."""
    from glm_export.deployment.inspect import inspect_folder

    if polygraphy:
        from glm_export.artifacts.open import open_artifact
        from glm_export.artifacts.program import load_program
        from glm_export.deployment.run_line import run_line

        click.echo(run_line(load_program(open_artifact(folder).path)))
        return
    facts = inspect_folder(folder, family, adapters)
    if as_json:
        show_json(facts)
    else:
        show_facts(RESULTS, facts)


def show_facts(console: Console, facts: dict[str, Any]) -> None:
    """A two-column table; lists go one item a line, and what there is none of is left out."""
    there = {name: value for name, value in facts.items() if value not in ([], {}, "", None)}
    show_facts_grid(console, [(name.replace("_", " "), escape(_plain(name, value))) for name, value in there.items()])


def _plain(name: str, value: Any) -> str:
    if name in ("inputs", "outputs"):
        layers = max((int(item.split(".")[1]) for item in value if "." in item), default=0)
        kept = [item.replace("'", "") for item in value if "." not in item or ".0." in item]
        return "\n".join([*kept, *([f"… and so on, {layers + 1} layers"] if layers else [])])
    if name.endswith("_bytes"):
        return size(value)
    if isinstance(value, dict):
        return "\n".join(
            f"{key}: {size(item) if name in ('sizes', 'memory') else _word(item)}" for key, item in value.items()
        )
    return "\n".join(map(_word, value)) if isinstance(value, list) else _word(value)


def _word(value: Any) -> str:
    """A value as prose has it: yes or no, thousands apart, items behind each other."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_word(item)}" for key, item in value.items())
    return ", ".join(map(_word, value)) or "none" if isinstance(value, list | tuple) else str(value)
