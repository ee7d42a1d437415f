"""A TOML file whose keys are a verb's options, as they are typed without their dashes; what is typed comes first."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import rich_click as click

from glm_export.errors import InputError, shown

CONFIG = "--config"


def option(panel: str) -> click.RichOption:
    """``--config``, for every verb that has options."""
    return click.RichOption(
        [CONFIG],
        type=click.Path(path_type=Path),
        metavar="FILE.toml",
        expose_value=False,
        is_eager=True,
        callback=_read,
        panel=panel,
        help='Options, as `dtype = "float16"`; those that are typed come first.',
    )


def _read(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    if path is None or ctx.resilient_parsing:
        return
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{CONFIG} {path} cannot be read: {error.strerror}; give a TOML file of options") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f'{CONFIG} {path} is no TOML: {error}; write lines as dtype = "float16"') from error
    known = {
        _key(each): each for each in ctx.command.params if isinstance(each, click.Option) and _settable(each, param)
    }
    found: dict[str, Any] = {}
    for key, value in values.items():
        each = _option(path, known, key, ctx)
        found[str(each.name)] = _value(path, each, key, value)
    ctx.default_map = found


def _settable(each: click.Option, config: click.Parameter) -> bool:
    """Options of the verb itself; how much is said is said on the command line."""
    return each.expose_value and each is not config


def _key(each: click.Parameter) -> str:
    return max(each.opts, key=len).lstrip("-")


def _option(path: Path, known: dict[str, click.Option], key: str, ctx: click.Context) -> click.Option:
    """The option of a key.

    Raises:
        InputError: there is none; the nearest is named.
    """
    if key in known:
        return known[key]
    near = get_close_matches(key.replace("_", "-").lstrip("-"), known, n=1, cutoff=0.5)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    raise InputError(f"{path}: {ctx.info_name} has no option {shown(key)}; {meant}")


def _value(path: Path, each: click.Option, key: str, value: Any) -> Any:
    """A value as click takes it.

    Raises:
        InputError: it is of another kind than the option.
    """
    values = value if isinstance(value, list) and each.multiple else [value]
    for one in values:
        if not _fits(each, one):
            raise InputError(f"{path}: {key} should be {_expected(each)}, found {shown(value)}")
    return [_typed(one) for one in values] if each.multiple else _typed(value)


def _fits(each: click.Option, value: Any) -> bool:
    """Of the kind that is meant: click would take 2.5 for 2, and true for 1."""
    if each.is_flag:
        return isinstance(value, bool)
    if isinstance(each.type, type(click.INT)):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _expected(each: click.Option) -> str:
    if each.is_flag:
        return "true or false"
    kind = "a whole number" if isinstance(each.type, type(click.INT)) else "a text or a number"
    return f"{kind}, or a list of such" if each.multiple else kind


def _typed(value: Any) -> Any:
    """Numbers as they would be typed; click converts them, and says what is wrong with them."""
    return value if isinstance(value, bool) else str(value)
