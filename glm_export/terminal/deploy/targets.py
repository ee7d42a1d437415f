"""The verb ``deploy``: which targets there are, and the line of each. A target is imported when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import rich_click as click

TARGETS = {
    "foundry-local": "Lay FOLDER, an exported folder, out as a model of Foundry Local and of onnxruntime-genai.",
    "transformers.js": "Lay FOLDER, an exported folder, out as transformers.js reads models, in Node.js or a browser.",
    "triton": "Put FOLDER, an exported folder or an engine, into a model repository of Triton Inference Server.",
}
"""Each is a module of this room and the command in it, with the first paragraph of its help."""


class Target(click.RichCommand):
    """A target's name and line; parsing its words imports it."""

    def load(self) -> click.Command:
        """The command itself."""
        name = str(self.name)
        # Other programs' names are not all Python's: a dot and a dash are an underscore there.
        python = name.replace(".", "_").replace("-", "_")
        command: click.Command = getattr(import_module(f"glm_export.terminal.deploy.{python}"), python)
        from glm_export.terminal.frame.verb import framed

        return framed(command)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse with the target's own options."""
        return self.load().make_context(info_name, args, parent, **extra)


class Targets(click.RichGroup):
    """Targets by their name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Every target."""
        return sorted(TARGETS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """A target, not imported yet; None where there is none of that name."""
        return Target(name=cmd_name, help=TARGETS[cmd_name]) if cmd_name in TARGETS else None


@click.group(cls=Targets)
def deploy() -> None:
    """Write what other people's servers need to run an exported folder or an engine."""
