"""One file per target, each with one ``DIALECT`` value; found by its name."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Literal

from glm_export.errors import InputError
from glm_export.graphs.dialect import Dialect

DialectName = Literal["onnx", "ort", "portable", "tensorrt"]
"""For editors and type checkers; :func:`names` finds them."""
CANONICAL: DialectName = "onnx"
"""What a model is traced to; the other dialects are lowerings of it."""


def names() -> list[str]:
    """Every dialect that has a file here."""
    return sorted(module.name for module in iter_modules(__path__))


def load(name: str) -> Dialect:
    """The dialect of that name.

    Raises:
        InputError: no such dialect; the message lists those there are.
    """
    if name not in names():
        raise InputError(f"dialect {name!r} is unknown; known dialects: {', '.join(names())}")
    dialect: Dialect = import_module(f"{__name__}.{name}").DIALECT
    return dialect


def every() -> list[Dialect]:
    """All of them, in the order of their names."""
    return [load(name) for name in names()]
