"""What a record shows of itself: a line in a terminal, a table in a notebook, by what matters of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from html import escape


class Summarized(ABC):
    """A record with a short ``repr``, and a table where a notebook shows it."""

    __slots__ = ()

    @abstractmethod
    def summary(self) -> dict[str, str]:
        """What matters of it, by name, in words."""

    def __repr__(self) -> str:
        said = ", ".join(f"{name}: {value}" for name, value in self.summary().items())
        return f"<{type(self).__name__} {said}>"

    def _repr_html_(self) -> str:
        """IPython's protocol for rich display."""
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
            for name, value in self.summary().items()
        )
        return f"<table><caption>{escape(type(self).__name__)}</caption>{rows}</table>"
