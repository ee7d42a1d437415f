"""What every verb takes besides its own options, and how its help is laid out."""

from __future__ import annotations

from typing import Any

import rich_click as click

from glm_export.terminal.frame import config_file, saying

ALWAYS = "Always"
"""The panel of what every verb takes."""
OWN = "Options"
HELP = "-h"


def framed(command: click.Command) -> click.Command:
    """Give a verb what every verb takes, once."""
    if any(parameter.name == "quiet" for parameter in command.params):
        return command
    if isinstance(command, click.Group):
        command.params += saying.options(OWN)
        return command
    if any(isinstance(parameter, click.Option) for parameter in command.params):
        command.params.append(config_file.option(ALWAYS))
    command.params += saying.options(ALWAYS)
    if isinstance(command, click.RichCommand):
        command.panels = _panels(command.params)
    return command


def _panels(parameters: list[click.Parameter]) -> list[Any]:
    """A panel for each that options name, a verb's own first and what every verb takes last."""
    grouped: dict[str, list[str]] = {OWN: []}
    for each in parameters:
        if isinstance(each, click.RichOption):
            grouped.setdefault(str(each.panel or OWN), []).append(each.opts[0])
            # Said by the panel now; both would show it twice.
            each.panel = None
    grouped[ALWAYS] = [*grouped.pop(ALWAYS), HELP]
    return [click.RichOptionPanel(name, options=options) for name, options in grouped.items() if options]
