"""The verb ``deploy``: which targets there are. A target is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import rich_click as click

TARGETS = ("triton",)
"""Each is a module of this room, and the command in it."""


class Targets(click.RichGroup):
    """Commands by the name of their module."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Every target."""
        return sorted(TARGETS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """A target; None where there is none of that name."""
        if cmd_name not in TARGETS:
            return None
        command: click.Command = getattr(import_module(f"glm_export.terminal.deploy.{cmd_name}"), cmd_name)
        return command


@click.group(cls=Targets)
def deploy() -> None:
    """Write what other people's servers need to run an exported folder or an engine."""
