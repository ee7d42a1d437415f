"""Completion where click's own loses something: a value joined to its option, and descriptions with commas."""

from __future__ import annotations

from typing import Any

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)


class _WholeWord(ShellComplete):
    """A shell that puts an answer in the place of the whole word, ``--dialect=tensorrt``; click says its value."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """As click finds them, each as the word it stands for."""
        found = super().get_completions(args, incomplete)
        option, joined, _ = incomplete.partition("=")
        if joined and option.startswith("--"):
            for item in found:
                item.value = f"{option}={item.value}" if item.type == "plain" else item.value
        return found


class Zsh(_WholeWord, ZshComplete):
    """zsh, in which the value alone took the option's place as well."""


class Fish(_WholeWord, FishComplete):
    """fish, whose script cut a description at its first comma."""

    source_template = FishComplete.source_template.replace('split ","', 'split -m 1 ","')


class Bash(BashComplete):
    """bash, which cuts words at ``=``: a joined value is a word of its own, behind that of the sign."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """As click cuts them, without the sign before the value."""
        args, incomplete = super().get_completion_args()
        return (args[:-1] if args and args[-1] == "=" else args), incomplete


def prepare_completion() -> None:
    """Put these in the place of click's."""
    shells: tuple[type[Any], ...] = (Bash, Zsh, Fish)
    for shell in shells:
        add_completion_class(shell)
