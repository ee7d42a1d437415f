"""Docstrings as mkdocstrings takes them: with the options that decorators append, and no reStructuredText.

``@takes`` and ``@listed`` (``glm_export/spec/option.py``) make lists of options when a module is imported; who reads
the source alone does not see them.
"""

from __future__ import annotations

import re
from inspect import cleandoc
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?([^`]+)`")
LITERAL = re.compile(r"::$", re.MULTILINE)
OPTIONS = "\nOptions:\n"
DECORATORS = {"takes": "\nOther Parameters:\n", "listed": "\nAttributes:\n"}
"""What the list is called in Google's style: of a function, of a record."""


class Docstrings(griffe.Extension):
    """Changes each docstring once it is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:  # noqa: ARG002 - griffe's
        """One object of any kind."""
        if obj.docstring is None:
            return
        for decorator in getattr(obj, "decorators", ()):
            title = DECORATORS.get(str(decorator.callable_path).rpartition(".")[2])
            if title is not None:
                made = griffe.dynamic_import(obj.path).__doc__ or ""
                obj.docstring.value = cleandoc(made).replace(OPTIONS, title)
        obj.docstring.value = LITERAL.sub(":", ROLE.sub(r"`\1`", obj.docstring.value))
