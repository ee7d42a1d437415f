"""The strings an expression may be, read from text: names that are asked for by ``find`` or ``getattr``."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from itertools import product

from glm_export.graphs import dialects
from tests.helpers.api_check.modules import Binding, Library, Module, Scope, default_of, every_argument

Place = tuple[ast.AST, Scope]


@cache
def needed_by_dialects() -> frozenset[str]:
    """What dialects say they need of TensorRT: values of objects, which text does not show."""
    return frozenset(dialect.can.tensorrt_needs for dialect in dialects.every() if dialect.can.tensorrt_needs)


class AskedNames:
    """Works out strings; ``modules`` are looked through for calls, where a string comes as an argument."""

    def __init__(self, library: Library, modules: Sequence[Module]) -> None:
        self._library = library
        self._open: set[ast.AST] = set()
        self._calls: dict[str, list[tuple[ast.Call, Scope]]] = {}
        for module in modules:
            for call, scope in module.calls:
                name = getattr(call.func, "attr", getattr(call.func, "id", ""))
                self._calls.setdefault(name, []).append((call, scope))

    def of(self, node: ast.AST, scope: Scope) -> frozenset[str] | None:
        """Every string it may be; None where that cannot be told."""
        if node in self._open:
            return frozenset()
        self._open.add(node)
        try:
            return self._of(node, scope)
        finally:
            self._open.discard(node)

    def _of(self, node: ast.AST, scope: Scope) -> frozenset[str] | None:
        match node:
            case ast.Constant(value=str(text)):
                return frozenset({text})
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                return self.of(value, scope)
            case ast.JoinedStr(values=parts):
                found = [self.of(part, scope) for part in parts]
                known = [part for part in found if part is not None]
                return frozenset(map("".join, product(*known))) if len(known) == len(found) else None
            case ast.IfExp(body=body, orelse=other):
                return self._any_of([(body, scope), (other, scope)])
            case ast.BoolOp(values=values):
                return self._any_of([(value, scope) for value in values])
            case ast.Subscript(value=value, slice=index):
                return self._any_of(self._entries(value, index, scope))
            case ast.Name(id=name):
                return self._any_of([place for binding in scope.find(name) for place in self._bound(binding)])
            case ast.Attribute(attr="tensorrt_needs"):
                return needed_by_dialects()
            case ast.Attribute():
                place = self._constant(node, scope)
                return self.of(*place) if place is not None else None
        return None

    def _any_of(self, places: Sequence[Place]) -> frozenset[str] | None:
        found = [self.of(*place) for place in places]
        known = [strings for strings in found if strings is not None]
        return frozenset().union(*known) if known and len(known) == len(found) else None

    def _bound(self, binding: Binding) -> Sequence[Place]:
        """Expressions a name may stand for; one that is no string where that cannot be told."""
        node, scope, places = binding.node, binding.scope, []
        if binding.how == "value":
            places = [(node, scope)]
        elif binding.how == "annotated" and isinstance(node, ast.AnnAssign) and node.value is not None:
            places = [(node.value, scope)]
        elif binding.how == "each":
            places = self._elements(node, scope)
        elif binding.how == "parameter" and isinstance(node, ast.arg):
            places = self._arguments(node, scope)
        elif binding.how == "import":
            found = self._imported(binding.target)
            places = [found] if found is not None else []
        chosen = [_part(place, binding.place) for place in places]
        return chosen or [(ast.Pass(), scope)]

    def _imported(self, target: str) -> Place | None:
        home, _, name = target.rpartition(".")
        module = self._library.module(home) if home else None
        return (ast.Name(id=name), module.top) if module is not None else None

    def _constant(self, node: ast.AST, scope: Scope) -> Place | None:
        """Where a constant is written that a name, or a name in one of our modules, stands for."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            target = next((found.target for found in scope.find(node.value.id) if found.how == "import"), None)
            module = self._library.module(target) if target is not None else None
            return self._constant(ast.Name(id=node.attr), module.top) if module is not None else None
        if isinstance(node, ast.Name):
            places = [place for binding in scope.find(node.id) for place in self._bound(binding)]
            return self._constant(*places[0]) if len(places) == 1 and places[0][0] is not node else None
        return node, scope

    def _elements(self, node: ast.AST, scope: Scope) -> list[Place]:
        """What iterating gives, one expression each."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            written = self._constant(node.func.value, scope)
            if written is None or not isinstance(written[0], ast.Dict):
                return []
            keys, values = (list(filter(None, written[0].keys)), written[0].values)
            pairs: list[ast.expr] = [ast.Tuple(elts=[key, value]) for key, value in zip(keys, values, strict=True)]
            by_method: dict[str, list[ast.expr]] = {"items": pairs, "values": values, "keys": keys}
            return [(part, written[1]) for part in by_method.get(node.func.attr, [])]
        place = self._constant(node, scope)
        if place is None:
            return []
        listed, home = place
        match listed:
            case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
                return [
                    inner for part in parts
                    for inner in (self._elements(part.value, home) if isinstance(part, ast.Starred) else [(part, home)])
                ]  # fmt: skip
            case ast.IfExp(body=body, orelse=other):
                return self._elements(body, home) + self._elements(other, home)
            case ast.Dict() as table:
                return [(key, home) for key in table.keys if key is not None]
        return []

    def _entries(self, value: ast.AST, index: ast.AST, scope: Scope) -> list[Place]:
        """Values of a table; those under the keys that an index may be."""
        place, chosen = self._constant(value, scope), self.of(index, scope)
        if place is None or not isinstance(place[0], ast.Dict):
            return []
        table, home = place
        keyed = [
            (self.of(key, home) if key else None, entry) for key, entry in zip(table.keys, table.values, strict=True)
        ]
        return [(entry, home) for keys, entry in keyed if not chosen or not keys or chosen & keys]

    def _arguments(self, parameter: ast.arg, scope: Scope) -> list[Place]:
        """What callers give for a parameter."""
        function = scope.node
        if not isinstance(function, ast.FunctionDef):
            return []
        position = every_argument(function.args).index(parameter) - bool(scope.bound)
        found: list[Place] = []
        for call, place in self._calls.get(function.name, []):
            named = [keyword.value for keyword in call.keywords if keyword.arg == parameter.arg]
            found += [(given, place) for given in named or call.args[position : position + 1]]
        default = default_of(function.args, parameter)
        return found + ([(default, scope)] if default is not None else [])


def _part(place: Place, where: tuple[int, ...]) -> Place:
    """A part of a tuple that is written out."""
    node, scope = place
    for index in where:
        if not isinstance(node, ast.Tuple | ast.List) or index >= len(node.elts):
            return ast.Pass(), scope
        node = node.elts[index]
    return node, scope
