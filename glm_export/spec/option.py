"""An option, said once: a field of a frozen record whose help and choices stand in the field's metadata.

The command line makes its options of them (``terminal/console.py``), docstrings their lists (:func:`listed` and
:func:`takes`), and errors name them as a person types them (:func:`flag`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from inspect import cleandoc
from typing import Any, TypeVar

from glm_export.errors import InputError

OPTION = "option"
Record = TypeVar("Record")
Verb = TypeVar("Verb", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What is known of an option besides its type and default.

    ``help``: one or two sentences. ``choices``: asked when needed, since rooms know them by their files. ``least``,
    ``most``: of an integer. ``flag``: on the command line, where that is not the field's name.
    """

    help: str
    choices: Callable[[], Sequence[str]] | None = None
    least: int | None = None
    most: int | None = None
    flag: str | None = None


def described(
    text: str,
    *,
    choices: Callable[[], Sequence[str]] | Sequence[str] | None = None,
    least: int | None = None,
    most: int | None = None,
    flag: str | None = None,
) -> dict[str, Option]:
    """An :class:`Option` as the metadata of a dataclass field."""
    asked = choices if choices is None or callable(choices) else (lambda: choices)
    return {OPTION: Option(help=text, choices=asked, least=least, most=most, flag=flag)}


def options_of(record: type) -> dict[str, tuple[Field[Any], Option]]:
    """The described fields of a record, by name."""
    return {field.name: (field, field.metadata[OPTION]) for field in fields(record) if OPTION in field.metadata}


def flag(record: type, name: str) -> str:
    """A field as a person types it, such as ``--max-length``."""
    _, option = options_of(record)[name]
    return f"--{(option.flag or name).replace('_', '-')}"


def require_known(record: Any, *names: str) -> None:
    """See that fields hold one of their choices; None is left open.

    Raises:
        InputError: one does not; the message lists the known.
    """
    for name in names:
        _, option = options_of(type(record))[name]
        value, known = getattr(record, name), option.choices() if option.choices else ()
        if value is not None and value not in known:
            raise InputError(f"{option.flag or name} {value!r} is unknown; known: {', '.join(known)}")


def merged(kind: type[Record], given: Record | None, keywords: Mapping[str, Any]) -> Record:
    """A record with keywords in place of its fields; without a record, of the defaults.

    Raises:
        TypeError: a keyword is no field's name; the message lists those there are.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = [name for name in keywords if name not in known]
    if unknown:
        raise TypeError(f"there is no option {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
    return kind(**keywords) if given is None else replace(given, **keywords)  # type: ignore[type-var]


def listed(record: type[Record]) -> type[Record]:
    """Append a record's options to its docstring."""
    record.__doc__ = f"{(record.__doc__ or '').rstrip()}\n\n{_listing(record)}"
    return record


def takes(record: type) -> Callable[[Verb], Verb]:
    """Append a record's options to the docstring of a function that takes them as keywords."""

    def documented(verb: Verb) -> Verb:
        verb.__doc__ = f"{cleandoc(verb.__doc__ or '')}\n\n{_listing(record)}"
        return verb

    return documented


def _listing(record: type) -> str:
    return "\n".join(["Options:", *(f"    {name}: {_sentence(*known)}" for name, known in options_of(record).items())])


def _sentence(field: Field[Any], option: Option) -> str:
    known = f" One of {', '.join(option.choices())}." if option.choices else ""
    said = field.default is not MISSING and field.default is not False and field.default not in (None, ())
    return f"{option.help}{known}{f' Default: {field.default}.' if said else ''}"
