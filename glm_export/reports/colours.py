"""What colours are for, and the placeholders that plots are drawn in: the page's theme chooses the colours themselves.

Each placeholder becomes ``var(--NAME)`` in the SVG. Pairs of light and dark stand in ``page/report.css``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

HEAT = tuple(f"heat-{number}" for number in range(8))
"""Below a bound, each half a power of ten; the last is just below it."""
OVER = ("over-0", "over-1")
"""Beyond a bound: up to ten times, and further."""
SERIES = tuple(f"series-{number}" for number in range(6))
NAMES = ("ground", "ink", "faint", "line", "good", "bad", "planted", *SERIES, *HEAT, *OVER)
PLACEHOLDERS = {name: f"#0a0b{number:02x}" for number, name in enumerate(NAMES)}
"""Nobody draws in these by accident."""
VARIABLES = {placeholder: f"var(--{name})" for name, placeholder in PLACEHOLDERS.items()}


_PAINT: ContextVar[Mapping[str, str] | None] = ContextVar("_PAINT", default=None)


def colour(name: str) -> str:
    """The placeholder of a name; within :func:`painted` the colour itself."""
    return (_PAINT.get() or PLACEHOLDERS)[name]


@contextmanager
def painted(colours: Mapping[str, str]) -> Iterator[None]:
    """Within, what is drawn has these colours: of a picture that no page gives a theme."""
    token = _PAINT.set(colours)
    try:
        yield
    finally:
        _PAINT.reset(token)
