"""What an expression stands for, as far as it is TensorRT's: worked out from text, by annotations and assignments.

TensorRT has no types and everything of it is ``Any``. So a value is followed from where TensorRT's names enter, the
module in ``glm_export.engines.vendor.TensorRT``, through its recorded API and our own functions and attributes; where
the trail is lost, a variable's name says what it holds (``CONVENTIONS``).
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence

from tests.helpers.api_check.kinds import (
    ASKS,
    FOREIGN,
    IN_OWN_CLASS,
    MADE,
    MODULE,
    NOTHING,
    OF_NUMPY,
    OPEN,
    PLAIN,
    PLAIN_CALLS,
    SAME_ELEMENTS,
    SEQUENCES,
    UNKNOWN,
    Kind,
    either,
    given_by,
    member_of_vendors,
    or_by_convention,
)
from tests.helpers.api_check.modules import Binding, Library, Module, Scope, assigned_to_self
from tests.helpers.api_check.strings import AskedNames


class Objects:
    """Works out kinds over a library of modules."""

    def __init__(self, library: Library, modules: Sequence[Module]) -> None:
        self.library = library
        self.names = AskedNames(library, modules)
        self._known: dict[tuple[Scope, str], Kind] = {}
        self._open: set[object] = set()
        self._cut = False

    def of(self, node: ast.AST, scope: Scope) -> Kind:
        """What an expression stands for."""
        match node:
            case ast.Constant(value=None):
                return NOTHING
            case ast.Name(id=name):
                return self.of_name(name, scope)
            case ast.Attribute(value=value, attr=attribute):
                return self.member(self.of(value, scope), attribute)
            case ast.Call():
                return self._call(node, scope)
            case ast.Subscript(value=value, slice=index):
                return self._part(self.of(value, scope), index)
            case ast.BoolOp(values=values):
                return either([self.of(value, scope) for value in values])
            case ast.IfExp(body=body, orelse=other):
                return either([self.of(body, scope), self.of(other, scope)])
            case ast.NamedExpr(value=value):
                return self.of(value, scope)
            case ast.Tuple(elts=parts) if not any(isinstance(part, ast.Starred) for part in parts):
                return Kind("several", parts=tuple(self.of(part, scope) for part in parts))
            case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
                return Kind("many", parts=(either([self._listed(part, scope) for part in parts]),))
            case ast.Dict(values=values):
                return Kind("table", parts=(either([self.of(value, scope) for value in values]),))
            case ast.DictComp(value=value):
                return Kind("table", parts=(self.of(value, scope.module.scopes[node]),))
            case ast.ListComp(elt=value) | ast.SetComp(elt=value) | ast.GeneratorExp(elt=value):
                return Kind("many", parts=(self.of(value, scope.module.scopes[node]),))
            case ast.BinOp(left=left, right=right):
                # Lists are added and repeated.
                sides = [self.of(left, scope), self.of(right, scope)]
                return either([kind.listed for kind in sides])
            case ast.Lambda(body=body):
                return Kind("call", parts=(self.of(body, scope.module.scopes[node]),))
            case ast.Await() | ast.Yield() | ast.YieldFrom():
                return UNKNOWN
        return PLAIN

    def _listed(self, part: ast.expr, scope: Scope) -> Kind:
        kind = self.of(part.value if isinstance(part, ast.Starred) else part, scope)
        return kind.element if isinstance(part, ast.Starred) else kind

    def of_name(self, name: str, scope: Scope) -> Kind:
        """What a name stands for; where that cannot be told, what its convention says."""
        if (scope, name) in self._known:
            return self._known[scope, name]
        if (scope, name) in self._open:
            self._cut = True
            return OPEN
        self._open.add((scope, name))
        outer, self._cut = self._cut, False
        bindings = scope.find(name)
        found = either([self._bound(binding) for binding in bindings])
        self._open.discard((scope, name))
        if not bindings:
            found = Kind("builtin", name) if hasattr(builtins, name) else UNKNOWN
        if all(binding.how != "import" for binding in bindings):
            found = or_by_convention(found, name)
        if not self._cut:
            self._known[scope, name] = found
        self._cut = self._cut or outer
        return found

    def _bound(self, binding: Binding) -> Kind:
        node, scope = binding.node, binding.scope
        match binding.how, node:
            case "value", _:
                found = self.of(node, scope)
            case "appended", _:
                found = Kind("many", parts=(self.of(node, scope),))
            case "each", ast.AST():
                found = self.of(node, scope).element
            case "with", _:
                # A generator's value, or the thing itself.
                found = self.of(node, scope)
                found = found.element if found.sort == "many" else found
            case "annotated", ast.AnnAssign():
                found = self.annotated(node.annotation, scope)
                if not found.certain and node.value is not None:
                    found = either([found, self.of(node.value, scope)])
            case "parameter", ast.arg():
                found = self._parameter(node, scope)
            case "function", ast.FunctionDef():
                found = Kind("own function", f"{scope.module.name}:{scope.module.scopes[node].title}")
            case "class", ast.ClassDef():
                found = Kind("own class", f"{scope.module.name}:{scope.module.scopes[node].title}")
            case "import", _:
                found = self._imported(binding.target)
            case _:
                found = PLAIN
        for index in binding.place:
            found = found.parts[index] if found.sort == "several" and index < len(found.parts) else found.element
        return found

    def _imported(self, target: str) -> Kind:
        module = self.library.module(target)
        if module is not None:
            return Kind("own module", target)
        home, _, name = target.rpartition(".")
        module = self.library.module(home) if home else None
        return self.of_name(name, module.top) if module is not None else FOREIGN

    def _parameter(self, argument: ast.arg, scope: Scope) -> Kind:
        function = scope.node
        if scope.bound and isinstance(function, ast.FunctionDef) and argument in function.args.args[:1]:
            path = f"{scope.module.name}:{scope.parent.title if scope.parent else ''}"
            return Kind("own class" if scope.bound == "class" else "own", path)
        found = self.annotated(argument.annotation, scope) if argument.annotation is not None else UNKNOWN
        if isinstance(function, ast.FunctionDef) and argument is function.args.vararg:
            return Kind("many", parts=(found,))
        if isinstance(function, ast.FunctionDef) and argument is function.args.kwarg:
            return Kind("table", parts=(found,))
        return found

    def annotated(self, node: ast.AST, scope: Scope) -> Kind:
        """What an annotation promises."""
        match node:
            case ast.Constant(value=str(text)):
                return self.annotated(ast.parse(text, mode="eval").body, scope)
            case ast.Constant(value=None):
                return NOTHING
            case ast.Name(id="Any" | "object" | "ModuleType"):
                return UNKNOWN
            case ast.BinOp(left=left, right=right):
                return either([self.annotated(left, scope), self.annotated(right, scope)])
            case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=parts)) if not (
                isinstance(parts[-1], ast.Constant) and parts[-1].value is Ellipsis
            ):
                return Kind("several", parts=tuple(self.annotated(part, scope) for part in parts))
            case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in SEQUENCES:
                first = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
                return Kind("many", parts=(self.annotated(first, scope),))
            case ast.Subscript(value=ast.Name(id="Callable"), slice=ast.Tuple(elts=[_, given])):
                return Kind("call", parts=(self.annotated(given, scope),))
            case ast.Subscript(value=ast.Name(id="dict" | "Mapping"), slice=ast.Tuple(elts=[_, value])):
                # What ``dict[str, Any]`` holds is JSON as a rule.
                held = self.annotated(value, scope)
                return Kind("table", parts=(held if held.certain else MADE,))
            case ast.Subscript(value=generic, slice=inner) if getattr(generic, "id", "") not in OF_NUMPY:
                return UNKNOWN if "Any" in {getattr(part, "id", "") for part in ast.walk(inner)} else PLAIN
            case ast.Name(id=name):
                return self._named_type(name, scope)
            case ast.Attribute():
                found = self.of(node, scope)
                return Kind("own", found.name) if found.sort == "own class" else PLAIN
        return PLAIN

    def _named_type(self, name: str, scope: Scope) -> Kind:
        for binding in scope.find(name):
            if binding.how == "value":
                return self.annotated(binding.node, binding.scope)
            if binding.how == "import":
                home, _, original = binding.target.rpartition(".")
                module = self.library.module(home) if home else None
                return self._named_type(original, module.top) if module is not None else PLAIN
            if binding.how == "class":
                return Kind("own", self._bound(binding).name)
        return PLAIN

    def member(self, kind: Kind, attribute: str) -> Kind:
        """What an attribute of something stands for."""
        if kind.sort in ("module", "class", "object"):
            return member_of_vendors(kind, attribute)
        if kind.sort == "own module":
            module = self.library.module(kind.name)
            return self.of_name(attribute, module.top) if module is not None else FOREIGN
        if kind.sort in ("own", "own class"):
            return self._own(kind, attribute)
        if kind.sort in ("many", "several", "table"):
            return Kind("of container", attribute, (kind,))
        if kind.sort == "owns":
            return either([self.member(part, attribute) for part in kind.parts])
        return FOREIGN if kind == MADE else kind if kind in (PLAIN, FOREIGN, OPEN) else UNKNOWN

    def _own(self, kind: Kind, attribute: str) -> Kind:
        if (kind, attribute) in self._open:
            self._cut = True
            return OPEN
        self._open.add((kind, attribute))
        found = self._own_member(kind, attribute)
        self._open.discard((kind, attribute))
        return PLAIN if found is None else or_by_convention(found, attribute)

    def _own_member(self, kind: Kind, attribute: str) -> Kind | None:
        module, owner = self.definition(kind.name)
        if module is None or not isinstance(owner, ast.ClassDef):
            return None
        scope, found = module.scopes[owner], []
        for binding in scope.names.get(attribute, []):
            given = self._bound(binding)
            marks = {getattr(mark, "id", "") for mark in getattr(binding.node, "decorator_list", [])}
            found.append(self.returned(given.name) if marks & {"property", "cached_property"} else given)
        if not found or not either(found).certain:
            found += [self._bound(binding) for binding in assigned_to_self(owner, attribute, module)]
        if found:
            return either(found)
        for base in owner.bases:
            above = self.of(base, scope)
            if above.sort == "class":
                return member_of_vendors(Kind("object", above.name), attribute)
            inherited = self._own_member(above, attribute) if above.sort == "own class" else None
            if inherited is not None:
                return inherited
        return None

    def vendors_base(self, kind: Kind, attribute: str) -> str | None:
        """The class of TensorRT's that an object of ours has an attribute from; None where it is ours."""
        if kind.sort == "owns":
            return next(filter(None, (self.vendors_base(part, attribute) for part in kind.parts)), None)
        module, owner = self.definition(kind.name)
        if kind.sort != "own" or module is None or not isinstance(owner, ast.ClassDef):
            return None
        bases = [self.of(base, module.scopes[owner]) for base in owner.bases]
        above = next((base.name for base in bases if base.sort == "class"), None)
        ours = attribute in module.scopes[owner].names or any(assigned_to_self(owner, attribute, module))
        return None if ours else above

    def definition(self, name: str) -> tuple[Module | None, ast.AST | None]:
        """The module and node of a class or function of ours, by ``module:Class.method``."""
        home, _, title = name.partition(":")
        module = self.library.module(home)
        if module is None:
            return None, None
        return module, next((node for node, scope in module.scopes.items() if title and scope.title == title), None)

    def returned(self, name: str) -> Kind:
        """What a function of ours gives: by its annotation, and where that says Any, by its return statements."""
        module, function = self.definition(name)
        if module is None or not isinstance(function, ast.FunctionDef):
            return UNKNOWN
        scope = module.scopes[function]
        promised = self.annotated(function.returns, scope) if function.returns is not None else UNKNOWN
        if promised.certain or name in self._open:
            return promised
        self._open.add(name)
        given = either([self.of(node.value, scope) for node in returns_of(function) if node.value is not None])
        self._open.discard(name)
        return promised if given == NOTHING else given

    def _call(self, node: ast.Call, scope: Scope) -> Kind:
        called = self.of(node.func, scope)
        match called.sort:
            case "class":
                return Kind("object", called.name)
            case "method":
                return given_by(called.name)
            case "own class":
                return Kind("own", called.name)
            case "own function":
                return self._own_call(called.name, node, scope)
            case "builtin":
                return self._builtin(called.name, node, scope)
            case "of container":
                return _from_container(called)
            case "call":
                return called.parts[0]
            case "foreign":
                # Another library may hand on what it was given, or something made of it.
                given = [self.of(value, scope) for value in (*node.args, *(word.value for word in node.keywords))]
                return MADE if any(kind.vendors for kind in given) else FOREIGN
        return called if called in (PLAIN, MADE, OPEN) else UNKNOWN

    def _own_call(self, name: str, node: ast.Call, scope: Scope) -> Kind:
        if name in ASKS:
            return self._found(node.args[0], scope)
        if name in IN_OWN_CLASS and len(node.args) > IN_OWN_CLASS[name]:
            return Kind("many", parts=(Kind("object", self._found(node.args[IN_OWN_CLASS[name]], scope).name),))
        return self.returned(name)

    def _found(self, asked: ast.expr, scope: Scope) -> Kind:
        """What a name stands for that is asked for by ``find``; of several nothing can be told."""
        names = self.names.of(asked, scope) or frozenset()
        if len(names) != 1:
            return UNKNOWN
        owner, _, member = next(iter(names)).rpartition(".")
        return member_of_vendors(Kind("class", owner) if owner else MODULE, member)

    def _builtin(self, name: str, node: ast.Call, scope: Scope) -> Kind:
        given = [self.of(value, scope) for value in node.args]
        if name in PLAIN_CALLS or not given:
            return PLAIN
        if name in SAME_ELEMENTS:
            return Kind("many", parts=(given[0].element,))
        match name:
            case "next":
                return either([given[0].element, *given[1:]])
            case "enumerate":
                return Kind("many", parts=(Kind("several", parts=(PLAIN, given[0].element)),))
            case "zip":
                return Kind("many", parts=(Kind("several", parts=tuple(kind.element for kind in given)),))
            case "min" | "max":
                return given[0].element if len(given) == 1 else either(given)
            case "dict":
                pair = given[0].element
                return given[0] if given[0].sort == "table" else Kind("table", parts=(pair.parts or (UNKNOWN,))[-1:])
            case "getattr":
                names = self.names.of(node.args[1], scope) or frozenset()
                return either([self.member(given[0], found) for found in sorted(names)] or [UNKNOWN])
        return UNKNOWN if any(kind.vendors for kind in given) else PLAIN

    def _part(self, kind: Kind, index: ast.expr) -> Kind:
        match kind.sort, index:
            case "several", ast.Constant(value=int(place)) if -len(kind.parts) <= place < len(kind.parts):
                return kind.parts[place]
            case "many" | "several", ast.Slice():
                return kind
            case "table", _:
                return kind.parts[0]
            case "own", _:
                return PLAIN
        return kind.element


def _from_container(called: Kind) -> Kind:
    (container,) = called.parts
    if container.sort == "table":
        (value,) = container.parts
        given = {
            "values": Kind("many", parts=(value,)), "get": value, "pop": value, "setdefault": value, "copy": container,
            "items": Kind("many", parts=(Kind("several", parts=(PLAIN, value)),)),
        }  # fmt: skip
    else:
        given = {"pop": container.element, "copy": container}
    return given.get(called.name, PLAIN)


def returns_of(function: ast.FunctionDef) -> list[ast.Return]:
    """A function's own return statements, without those of functions inside it."""
    found: list[ast.Return] = []
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return):
            found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return found
