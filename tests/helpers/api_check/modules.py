"""Python modules read as text: scopes, and what each name in them is bound to. Nothing is imported or run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGE = "glm_export"
Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp


@dataclass(frozen=True, slots=True)
class Binding:
    """One way a name gets its value.

    ``how``: ``value`` and ``appended`` (``node`` is the expression), ``each`` (of the iterable ``node``), ``with``,
    ``parameter``, ``annotated``, ``import``, ``function``, ``class``, or ``other``. ``place``: which part of it, where
    several names are bound at once. ``scope``: where ``node`` is to be read.
    """

    how: str
    node: ast.AST
    scope: Scope
    place: tuple[int, ...] = ()
    target: str = ""


@dataclass(slots=True, eq=False)
class Scope:
    """A module, class, function, lambda or comprehension; ``owner`` is the class a method belongs to."""

    node: ast.AST
    module: Module
    parent: Scope | None
    names: dict[str, list[Binding]] = field(default_factory=dict)

    @property
    def owner(self) -> ast.ClassDef | None:
        """The class whose method this is."""
        above = self.parent.node if self.parent is not None else None
        return above if isinstance(above, ast.ClassDef) and isinstance(self.node, ast.FunctionDef) else None

    @property
    def bound(self) -> str:
        """What its first parameter is: ``self``, ``class``, or nothing special."""
        marks = {getattr(mark, "id", "") for mark in getattr(self.node, "decorator_list", [])}
        if self.owner is None or "staticmethod" in marks:
            return ""
        return "class" if "classmethod" in marks else "self"

    @property
    def title(self) -> str:
        """``Class.method`` or ``function``, with those around it; of the module itself nothing."""
        above = self.parent.title if self.parent is not None else ""
        name = getattr(self.node, "name", "")
        return f"{above}.{name}" if above and name else above or name

    def find(self, name: str) -> list[Binding]:
        """The bindings a name has here, or in the nearest scope around; those of classes are their own."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names and (scope is self or not isinstance(scope.node, ast.ClassDef)):
                return scope.names[name]
            scope = scope.parent
        return []

    def bind(self, name: str, binding: Binding) -> None:
        """Add a way a name gets its value."""
        self.names.setdefault(name, []).append(binding)


class Module:
    """A module's text. ``scopes``: of every node that has one; ``top`` is the module's own. ``calls``: all of them."""

    def __init__(self, name: str, file: str, text: str) -> None:
        self.name, self.file, self.text = name, file, text
        self.tree = ast.parse(text)
        self.scopes: dict[ast.AST, Scope] = {}
        self._keyed: dict[ast.AST, Binding] = {}
        self.calls: list[tuple[ast.Call, Scope]] = []
        self.top = self._enter(self.tree, None)

    @property
    def imported(self) -> set[str]:
        """Modules it imports, and names it imports from them, wherever in it."""
        bound = [found for scope in self.scopes.values() for ways in scope.names.values() for found in ways]
        whole = {found.target for found in bound if found.how == "import"}
        return whole | {name.rpartition(".")[0] for name in whole}

    def _enter(self, node: ast.AST, parent: Scope | None) -> Scope:
        scope = self.scopes[node] = Scope(node, self, parent)
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            keyed = self._keyed.get(node)
            for argument in every_argument(node.args):
                scope.bind(argument.arg, keyed or Binding("parameter", argument, scope))
        for child in ast.iter_child_nodes(node):
            self._visit(child, scope)
        return scope

    def _visit(self, node: ast.AST, scope: Scope) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            scope.bind(node.name, Binding("function" if isinstance(node, ast.FunctionDef) else "class", node, scope))
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda | Comprehension):
            self._enter(node, scope)
            return
        if isinstance(node, ast.Call):
            self.calls.append((node, scope))
            # What ``key=lambda`` is asked about is what is sorted.
            for word in node.keywords:
                if word.arg == "key" and len(node.args) == 1:
                    self._keyed[word.value] = Binding("each", node.args[0], scope)
        for name, binding in _bindings(node, scope):
            scope.bind(name, binding)
        for child in ast.iter_child_nodes(node):
            self._visit(child, scope)


def every_argument(arguments: ast.arguments) -> list[ast.arg]:
    """In the order of a call; ``*args`` and ``**kwargs`` last."""
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return named + [rest for rest in (arguments.vararg, arguments.kwarg) if rest is not None]


def default_of(arguments: ast.arguments, parameter: ast.arg) -> ast.expr | None:
    """What a parameter is where a call leaves it out."""
    positional = [*arguments.posonlyargs, *arguments.args]
    first = len(positional) - len(arguments.defaults)
    optional = dict(zip(positional[first:], arguments.defaults, strict=True))
    return optional.get(parameter, dict(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)).get(parameter))


def _bindings(node: ast.AST, scope: Scope) -> Iterator[tuple[str, Binding]]:
    """Names that a statement or clause binds in its scope."""
    match node:
        case ast.Assign():
            for target in node.targets:
                yield from _targets(target, Binding("value", node.value, scope))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name, Binding("annotated", node, scope)
        case ast.AugAssign() | ast.NamedExpr():
            yield from _targets(node.target, Binding("value", node.value, scope))
        case ast.For() | ast.comprehension():
            yield from _targets(node.target, Binding("each", node.iter, scope))
        case ast.withitem(optional_vars=ast.expr() as target):
            yield from _targets(target, Binding("with", node.context_expr, scope))
        case ast.ExceptHandler(name=str(name)):
            yield name, Binding("other", node, scope)
        case ast.Import() | ast.ImportFrom():
            source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                bound = alias.asname or (alias.name if source else alias.name.partition(".")[0])
                yield bound, Binding("import", node, scope, target=source + (alias.name if source else bound))
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"), args=[appended]):
            yield name, Binding("appended", appended, scope)


def _targets(target: ast.expr, binding: Binding) -> Iterator[tuple[str, Binding]]:
    if isinstance(target, ast.Name):
        yield target.id, binding
    elif isinstance(target, ast.Tuple | ast.List):
        for index, part in enumerate(target.elts):
            inner = Binding(binding.how, binding.node, binding.scope, (*binding.place, index))
            yield from _targets(part.value if isinstance(part, ast.Starred) else part, inner)


def assigned_to_self(owner: ast.ClassDef, attribute: str, module: Module) -> Iterator[Binding]:
    """Every ``self.attribute = ...`` of a class's methods."""
    for method in owner.body:
        if not isinstance(method, ast.FunctionDef):
            continue
        scope = module.scopes[method]
        for node in ast.walk(method):
            if isinstance(node, ast.AnnAssign) and (((), attribute) in _attributes(node.target)):
                yield Binding("annotated", node, scope)
            for target in node.targets if isinstance(node, ast.Assign) else []:
                yield from (
                    Binding("value", node.value, scope, place)
                    for place, name in _attributes(target)
                    if name == attribute
                )


def _attributes(target: ast.expr | None, place: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], str]]:
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        yield place, target.attr
    elif isinstance(target, ast.Tuple | ast.List):
        for index, part in enumerate(target.elts):
            yield from _attributes(part, (*place, index))


class Library:
    """The package's modules, read when they are asked for. ``instead``: modules that stand in for the package's own."""

    def __init__(self, *instead: Module, like: Library | None = None) -> None:
        self._modules: dict[str, Module | None] = dict(like._modules) if like is not None else {}
        self._modules |= {module.name: module for module in instead}

    def module(self, name: str) -> Module | None:
        """A module of the package by its dotted name; None for what is none."""
        if name not in self._modules:
            path = ROOT / Path(*name.split("."))
            file = next((found for found in (path / "__init__.py", path.with_suffix(".py")) if found.is_file()), None)
            ours = file is not None and name.split(".")[0] == PACKAGE
            self._modules[name] = (
                Module(name, str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")) if file and ours else None
            )
        return self._modules[name]

    def of_file(self, path: Path) -> Module:
        """The module in a file of the package."""
        parts = path.relative_to(ROOT).with_suffix("").parts
        found = self.module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        assert found is not None
        return found
