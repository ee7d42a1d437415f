"""Jinja as transformers sets it up for chat templates; run as a program, a server of it on standard input.

Imports nothing of this package: as a program it is read alone, in a process that starts fast and can be killed.

Source: ``_compile_jinja_template`` in ``utils/chat_template_utils.py`` of transformers 4.57. Two differences: nothing
is ever written as Python writes it (a list, an object, None), and what a template makes is counted.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

resource: Any
try:
    import resource
except ImportError:  # Windows has no such limits; the deadline of whoever asks still holds
    resource = None

MEMORY_BYTES = 1 << 29
REPR = "it would write {} as Python does"


class PythonReprError(TemplateError):
    """A list or an object would have been written into the prompt as Python writes it."""


class _Unwritten:
    """What templates may look into, and not write."""

    def __str__(self) -> NoReturn:
        raise PythonReprError(REPR.format("a list" if isinstance(self, list) else "an object"))

    __repr__ = __str__

    def __format__(self, _: str) -> NoReturn:
        self.__str__()


class _List(_Unwritten, list[Any]):
    pass


class _Object(_Unwritten, dict[str, Any]):
    pass


def unwritten(value: Any) -> Any:
    """JSON's values, where lists and objects have no text."""
    if isinstance(value, dict):
        return _Object({key: unwritten(item) for key, item in value.items()})
    return _List(map(unwritten, value)) if isinstance(value, list) else value


class _Generation(Extension):
    """``{% generation %}`` marks what the model wrote; a prompt has the text alone."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        text: str = caller()
        return text


def _finalize(value: Any) -> Any:
    if isinstance(value, list | dict | tuple | set):
        raise PythonReprError(REPR.format("an object" if isinstance(value, dict) else "a list"))
    return "" if value is None else value


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The sandbox."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_finalize
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


@lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    """A template, compiled once."""
    return environment().from_string(template)


def render(template: str, values: dict[str, Any], most_characters: int | None = None) -> str:
    """A prompt's text.

    Args:
        template: Jinja.
        values: JSON's values by the template's names.
        most_characters: more are refused.

    Raises:
        TemplateError: the template says so, or is broken; and whatever Python raises in it.
    """
    parts: list[str] = []
    length = 0
    for part in compiled(template).generate(unwritten(values)):
        length += len(part)
        if most_characters is not None and length > most_characters:
            raise TemplateError(f"it makes more than {most_characters} characters")
        parts.append(part)
    return "".join(parts)


def _answers(requests: Any) -> Iterator[dict[str, Any]]:
    for line in requests:
        request = json.loads(line)
        _limit_computing(request["seconds"])
        try:
            yield {"text": render(request["template"], request["values"], request["most_characters"])}
        except MemoryError:
            yield {"error": f"it takes more than {MEMORY_BYTES >> 20} MiB"}
        # A template computes with whatever it is given, so it can fail in any of Python's ways.
        except Exception as error:
            reason = str(error).strip() if not isinstance(error, KeyError) else f"there is no {error}"
            line = getattr(error, "lineno", None)
            place = f" (line {line})" if line else ""
            yield {"error": (reason.splitlines()[0] if reason else type(error).__name__) + place}


def _limit_memory() -> None:
    if resource is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_computing(seconds: float) -> None:
    """From here on; the system kills the process that takes more. Seconds of the clock would pass on a busy machine."""
    if resource is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def serve() -> None:
    """Answer requests on standard input, one line of JSON each, until it ends."""
    _limit_memory()
    out = sys.stdout
    out.write("{}\n")
    out.flush()
    for answer in _answers(sys.stdin):
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    sys.path += sys.argv[1:]
    serve()
