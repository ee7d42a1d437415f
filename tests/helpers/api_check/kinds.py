"""Kinds of values: TensorRT's, ours, and what is neither."""

from __future__ import annotations

from dataclasses import dataclass

from tests.helpers.recorded_names import api, versions

VENDOR = "glm_export.engines.vendor"
DOOR = f"{VENDOR}:TensorRT"
ASKS = (f"{DOOR}.find", f"{DOOR}.require")
"""Ask for a name that a version may lack."""
IN_OWN_CLASS = {"glm_export.engines.network:Network.layers": 1}
"""Ours that give TensorRT's objects the class named by an argument, and which."""
CONVENTIONS = {
    "trt": "", "module": "", "logger": "ILogger", "severity": "ILogger.Severity", "builder": "Builder",
    "network": "INetworkDefinition", "parser": "OnnxParser", "error": "ParserError", "config": "IBuilderConfig",
    "layer": "ILayer", "runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext",
    "inspector": "EngineInspector", "timed": "ITimingCache", "refitter": "Refitter",
}  # fmt: skip
"""Name of a variable or attribute -> the class it holds, ``""`` for the module; plurals hold several."""
PLAIN_CALLS = {
    "all", "any", "bool", "bytes", "float", "format", "hasattr", "hash", "id", "int", "isinstance", "issubclass", "len",
    "memoryview", "open", "print", "range", "repr", "round", "str", "sum", "type",
}  # fmt: skip
SAME_ELEMENTS = {"list", "tuple", "set", "frozenset", "sorted", "reversed", "iter"}
SEQUENCES = {
    "list", "set", "frozenset", "Sequence", "Iterable", "Iterator", "Collection", "Generator", "tuple",
}  # fmt: skip
OF_NUMPY = {"NDArray", ""}
"""Generic types whose ``Any`` is a dtype or a shape; the unnamed are written ``np.ndarray`` and ``np.dtype``."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value is, by its ``sort``.

    TensorRT's: ``module``, ``class``, ``object`` (of the class ``name``), ``method`` (``name`` is its path).
    Ours: ``own`` (an object of the class ``name``), ``owns`` (of one of several), ``own class``, ``own function``,
    ``own module``. Holding others: ``many``, ``several`` (one part each), ``table`` (values), ``of container`` (a
    method of those), ``call`` (gives its part). The rest: ``nothing`` is None, ``plain`` is typed and not TensorRT's,
    ``foreign`` came from another library, ``made`` did, too, and of TensorRT's things or from where those may be kept,
    ``builtin`` is Python's,
    ``unknown`` may be anything, ``open`` hangs on itself and on nothing else so far, ``clash`` is TensorRT's here and
    something else there.
    """

    sort: str
    name: str = ""
    parts: tuple[Kind, ...] = ()

    @property
    def vendors(self) -> bool:
        """Whether it is TensorRT's, or holds what is."""
        return self.sort in ("module", "class", "object", "method") or any(part.vendors for part in self.parts)

    @property
    def certain(self) -> bool:
        """Whether nothing about it is unknown."""
        return self.sort not in ("unknown", "open", "foreign", "made", "clash") and all(
            part.certain for part in self.parts
        )

    @property
    def listed(self) -> Kind:
        """A tuple as a list; anything else as it is."""
        return Kind("many", parts=(self.element,)) if self.sort == "several" else self

    @property
    def element(self) -> Kind:
        """What iterating gives."""
        if self.sort == "many":
            # Of a list that was never seen filled, nothing is known.
            return UNKNOWN if self.parts[0] == NOTHING else self.parts[0]
        if self.sort == "several":
            return either(self.parts)
        return PLAIN if self.sort in ("table", "own", "own class") else self if self in PLAIN_OR_NOT else UNKNOWN


NOTHING, PLAIN, FOREIGN, MADE, UNKNOWN, OPEN, MODULE = (
    Kind(sort) for sort in ("nothing", "plain", "foreign", "made", "unknown", "open", "module")
)
PLAIN_OR_NOT = (PLAIN, FOREIGN, MADE, UNKNOWN, OPEN)


def either(kinds: tuple[Kind, ...] | list[Kind]) -> Kind:
    """What may be any of several."""
    every = list(dict.fromkeys(kind for kind in kinds if kind not in (NOTHING, OPEN)))
    if not every and OPEN in kinds:
        return OPEN
    if len(every) < 2:
        return every[0] if every else NOTHING
    if all(kind.sort == "many" for kind in every):
        return Kind("many", parts=(either([kind.parts[0] for kind in every]),))
    telling = [kind for kind in every if kind.vendors or kind.sort.startswith("own")]
    if len(telling) == 1:
        return telling[0]
    if telling and all(kind.sort == "own" for kind in telling):
        return Kind("owns", parts=tuple(telling))
    if telling:
        return Kind("clash", name=" or ".join(sorted(kind.name or kind.sort for kind in telling)))
    return next((kind for kind in (UNKNOWN, MADE, FOREIGN) if kind in every), PLAIN)


def or_by_convention(found: Kind, name: str) -> Kind:
    """What was found out; where that is little, what a variable of this name holds."""
    name = name.lstrip("_")
    if found in (NOTHING, FOREIGN, MADE, UNKNOWN, OPEN) and name in CONVENTIONS:
        return Kind("object", CONVENTIONS[name]) if CONVENTIONS[name] else MODULE
    uncertain = found.sort == "many" and not found.certain and not found.vendors
    if (uncertain or found in (UNKNOWN, OPEN)) and name.endswith("s") and CONVENTIONS.get(name[:-1]):
        return Kind("many", parts=(Kind("object", CONVENTIONS[name[:-1]]),))
    if found.sort == "table" and not found.certain and CONVENTIONS.get(name.removesuffix("s")) and name.endswith("s"):
        return Kind("table", parts=(Kind("object", CONVENTIONS[name[:-1]]),))
    return found


def recorded_class(path: str) -> bool:
    """Whether some version has a class or enum of this name."""
    return any(path in version.names for version in versions().values()) and path.rpartition(".")[2][:1].isupper()


def kind_named(given: str) -> Kind:
    """What a recorded method or property gives: ``ITensor``, ``[ITensor]``, or ``""`` for a plain value."""
    if given.startswith("["):
        return Kind("many", parts=(kind_named(given[1:-1]),))
    return Kind("object", given) if given else PLAIN


def home_of(path: str) -> str:
    """``Class.member`` by the class that has it, which may be a base."""
    owner, _, member = path.rpartition(".")
    return next(
        (own for base in (owner, *api().bases.get(owner, ())) if (own := f"{base}.{member}") in api().kinds), path
    )


def member_of_vendors(kind: Kind, attribute: str) -> Kind:
    """What an attribute of TensorRT's module, a class of it, or an object gives."""
    path = f"{kind.name}.{attribute}" if kind.name else attribute
    if recorded_class(path):
        return Kind("class", path)
    if attribute.startswith("__") or (kind.name in api().enums and attribute in ("name", "value")):
        return PLAIN
    path = home_of(path) if kind.name else path
    given = api().kinds.get(path, "()unrecorded")
    # A method of a version that 11.4 has lost gives what is not recorded; so does a property that does not tell.
    return Kind("method", path) if given.startswith("()") else kind_named(given[1:])


def given_by(path: str) -> Kind:
    """What a call of a recorded method gives."""
    given = api().kinds.get(path)
    return kind_named(given.removeprefix("()")) if given is not None else UNKNOWN
