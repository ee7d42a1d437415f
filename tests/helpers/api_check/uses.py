"""Every use of TensorRT's API in a module: which name, where, and under which question whether the version has it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from tests.helpers.api_check.kinds import ASKS, DOOR, MADE, MODULE, Kind
from tests.helpers.api_check.modules import Comprehension, Module, Scope
from tests.helpers.api_check.objects import Objects
from tests.helpers.recorded_names import Version, api, versions

Asked = tuple[tuple[str, ...], bool]
"""Names a version was asked for, sorted: one, or one of several; and whether it has it."""
Guards = frozenset[Asked]
NONE: Guards = frozenset()
ONLY_IN_RTX = ("tensorrt_rtx",)
"""A name that tells TensorRT-RTX from TensorRT, as ``TensorRT.rtx`` does."""
LOSE_TRACK = ("unknown", "open", "clash", "method", "nothing")
OF_CONTAINERS = {name for container in (list, tuple, set, dict) for name in dir(container)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Names used at once (several where a loop picks them), under what was asked before."""

    names: tuple[str, ...]
    file: str
    line: int
    function: str
    guards: Guards
    end: tuple[int, int] = (0, 0)
    """Line and column, in bytes, where it ends."""

    def lacking(self, required: dict[str, Version], known: Guards = NONE) -> list[str]:
        """Versions that get here and lack a name; ``known`` holds besides the use's own guards."""
        if (self.names, True) in self.guards:
            return []
        reaching = reached(required, self.guards | known)
        return [label for label in reaching if not all(required[label].has(name) for name in self.names)]


def reached(required: dict[str, Version], guards: Guards) -> list[str]:
    """Versions that answer every question as it was answered."""
    return [
        label for label, version in required.items()
        if all(
            any(version.has(name) for name in names) == present or (len(names) > 1 and not present)
            for names, present in guards
        )
    ]  # fmt: skip


def in_some_version(name: str) -> bool:
    """Whether a name was ever there."""
    return any(version.has(name) for version in versions().values())


@cache
def telling_members() -> frozenset[str]:
    """Names of members of any class in any version, that Python's own containers and strings have not."""
    every = {name.rpartition(".")[2] for version in versions().values() for name in version.names if "." in name}
    return frozenset(every - OF_CONTAINERS - set(dir(str)))


@dataclass(slots=True)
class Found:
    """What a module says. ``asked``: names asked for, by function. ``faults``: what cannot be followed or never was."""

    uses: list[Use] = field(default_factory=list)
    asked: dict[str, set[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class Uses:
    """Walks through one module."""

    def __init__(self, module: Module, objects: Objects) -> None:
        self.found = Found()
        self._module, self._objects = module, objects
        self._block(module.tree.body, module.top, NONE)

    def _fault(self, node: ast.expr, text: str) -> None:
        self.found.faults.append(f"{self._module.file}:{node.lineno}: {text}")

    def _use(self, names: Sequence[str], node: ast.expr | ast.FunctionDef, scope: Scope, guards: Guards) -> None:
        self.found.uses.append(
            Use(
                names=tuple(sorted(names)), file=self._module.file, line=node.lineno, function=scope.title,
                guards=guards, end=(node.end_lineno or 0, node.end_col_offset or 0),
            )
        )  # fmt: skip

    def _block(self, statements: Sequence[ast.stmt], scope: Scope, guards: Guards) -> None:
        for statement in statements:
            self._statement(statement, scope, guards)
            guards |= self._after(statement, scope)

    def _statement(self, statement: ast.stmt, scope: Scope, guards: Guards) -> None:
        match statement:
            case ast.If(test=test, body=body, orelse=other):
                self._expression(test, scope, guards)
                yes, no = self._answers(test, scope)
                self._block(body, scope, guards | yes)
                self._block(other, scope, guards | no)
            case ast.FunctionDef():
                if f"{self._module.name}:{self._module.scopes[statement].title}" not in ASKS:
                    for part in (*statement.decorator_list, *statement.args.defaults, *statement.args.kw_defaults):
                        if part is not None:
                            self._expression(part, scope, guards)
                    self._block(statement.body, self._module.scopes[statement], guards)
            case ast.ClassDef():
                self._class(statement, scope, guards)
            case ast.AnnAssign(target=target, value=value):
                # Annotations are never evaluated here.
                for part in filter(None, (target, value)):
                    self._expression(part, scope, guards)
            case _:
                for child in ast.iter_child_nodes(statement):
                    self._within(child, scope, guards)
                for block in ("body", "orelse", "finalbody"):
                    self._block(getattr(statement, block, []), scope, guards)

    def _within(self, node: ast.AST, scope: Scope, guards: Guards) -> None:
        """Parts of a statement that are not blocks."""
        if isinstance(node, ast.expr):
            self._expression(node, scope, guards)
        elif isinstance(node, ast.withitem):
            for part in ast.iter_child_nodes(node):
                self._within(part, scope, guards)
        elif isinstance(node, ast.ExceptHandler | ast.match_case):
            for part in filter(None, (getattr(node, "guard", None), getattr(node, "type", None))):
                self._expression(part, scope, guards)
            self._block(node.body, scope, guards)

    def _class(self, node: ast.ClassDef, scope: Scope, guards: Guards) -> None:
        inner = self._module.scopes[node]
        for base in (*node.decorator_list, *node.bases):
            self._expression(base, scope, guards)
            kind = self._objects.of(base, scope)
            for method in node.body:
                # A method that overrides nothing would never be called.
                if kind.sort == "class" and isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    self._use([f"{kind.name}.{method.name}"], method, inner, guards)
        self._block(node.body, inner, guards)

    def _after(self, statement: ast.stmt, scope: Scope) -> Guards:
        """What is settled for the statements that follow."""
        match statement:
            case ast.If(test=test, body=body, orelse=other):
                yes, no = self._answers(test, scope)
                return (no if _leaves(body) else NONE) | (yes if _leaves(other) else NONE)
            case ast.Assert(test=test):
                return self._answers(test, scope)[0]
            case ast.Expr(value=ast.Call() as call) | ast.Assign(value=ast.Call() as call):
                names = self._asked(call, scope)
                required = self._objects.of(call.func, scope) == Kind("own function", ASKS[1])
                return frozenset({(names, True)}) if names and required else NONE
        return NONE

    def _answers(self, test: ast.expr, scope: Scope) -> tuple[Guards, Guards]:
        """What is known where a condition holds, and where it does not."""
        match test:
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                yes, no = self._answers(inner, scope)
                return no, yes
            case ast.BoolOp(op=operator, values=values):
                every = [self._answers(value, scope) for value in values]
                both = frozenset().union(*(yes for yes, _ in every)), frozenset().union(*(no for _, no in every))
                return (both[0], NONE) if isinstance(operator, ast.And) else (NONE, both[1])
            case ast.Compare(
                left=left, ops=[ast.Is() | ast.IsNot() as operator], comparators=[ast.Constant(value=None)]
            ):
                names = self._asked(left, scope)
                if names:
                    absent = isinstance(operator, ast.Is)
                    return frozenset({(names, not absent)}), frozenset({(names, absent)})
            case ast.Attribute(value=value, attr="rtx") if self._objects.of(value, scope) == Kind("own", DOOR):
                return frozenset({(ONLY_IN_RTX, True)}), frozenset({(ONLY_IN_RTX, False)})
            case _:
                names = self._asked(test, scope)
                if names:
                    return frozenset({(names, True)}), frozenset({(names, False)})
        return NONE, NONE

    def _asked(self, node: ast.expr, scope: Scope) -> tuple[str, ...]:
        """Names that an expression asks a version for, if it does."""
        match node:
            case ast.Name(id=name):
                bindings = scope.find(name)
                if len(bindings) == 1 and bindings[0].how == "value" and isinstance(bindings[0].node, ast.Call):
                    return self._asked(bindings[0].node, bindings[0].scope)
            case ast.NamedExpr(value=value):
                return self._asked(value, scope)
            case ast.Call(func=ast.Name(id="hasattr" | "getattr"), args=[_, _, *rest]):
                if rest or getattr(node.func, "id", "") == "hasattr":
                    return self._named_members(node, scope)
            case ast.Call(func=function, args=[name, *_]) if self._objects.of(function, scope).name in ASKS:
                return tuple(sorted(self._objects.names.of(name, scope) or ()))
        return ()

    def _named_members(self, call: ast.Call, scope: Scope) -> tuple[str, ...]:
        """What ``hasattr``, ``getattr`` and ``setattr`` name, of an object of TensorRT's."""
        kind = self._objects.of(call.args[0], scope)
        if kind.sort not in ("module", "class", "object"):
            return ()
        names = self._objects.names.of(call.args[1], scope) or frozenset()
        return tuple(sorted(f"{kind.name}.{name}" if kind != MODULE else name for name in names))

    def _expression(self, node: ast.AST, scope: Scope, guards: Guards) -> None:
        match node:
            case ast.BoolOp(op=operator, values=values):
                for value in values:
                    self._expression(value, scope, guards)
                    yes, no = self._answers(value, scope)
                    guards |= yes if isinstance(operator, ast.And) else no
                return
            case ast.IfExp(test=test, body=body, orelse=other):
                yes, no = self._answers(test, scope)
                self._expression(test, scope, guards)
                self._expression(body, scope, guards | yes)
                self._expression(other, scope, guards | no)
                return
            case ast.Lambda(body=body):
                self._expression(body, self._module.scopes[node], guards)
                return
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                self._comprehension(node, guards)
                return
            case ast.Attribute():
                self._attribute(node, scope, guards)
            case ast.Call():
                self._call(node, scope, guards)
        for child in ast.iter_child_nodes(node):
            self._expression(child, scope, guards)

    def _comprehension(self, node: Comprehension, guards: Guards) -> None:
        scope = self._module.scopes[node]
        for generator in node.generators:
            self._expression(generator.iter, scope, guards)
            for condition in generator.ifs:
                self._expression(condition, scope, guards)
                guards |= self._answers(condition, scope)[0]
        for part in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
            self._expression(part, scope, guards)

    def _attribute(self, node: ast.Attribute, scope: Scope, guards: Guards) -> None:
        kind = self._objects.of(node.value, scope)
        if node.attr.startswith("__"):
            return
        if kind.sort in LOSE_TRACK or (kind.sort in ("many", "several", "table") and node.attr not in OF_CONTAINERS):
            what = f"{ast.unparse(node.value)} ({kind.name})" if kind.name else ast.unparse(node.value)
            advice = "give it a name of CONVENTIONS, or an annotation"
            self._fault(node, f"cannot tell what {what} is, of which .{node.attr} is taken: {advice}")
            return
        if kind == MADE and node.attr in telling_members():
            self._fault(
                node, f"{ast.unparse(node.value)} may be TensorRT's, of which .{node.attr} is taken: name it so"
            )
        base = self._objects.vendors_base(kind, node.attr) if kind.sort in ("own", "owns") else None
        if base is not None:
            self._use([f"{base}.{node.attr}"], node, scope, guards)
        elif kind == MODULE:
            self._use([node.attr], node, scope, guards)
        elif kind.sort in ("class", "object") and not (kind.name in api().enums and node.attr in ("name", "value")):
            self._use([f"{kind.name}.{node.attr}"], node, scope, guards)

    def _call(self, node: ast.Call, scope: Scope, guards: Guards) -> None:
        function = self._objects.of(node.func, scope)
        if function.sort == "own function" and function.name in ASKS:
            self._asks(node, self._asked(node, scope), scope)
        elif function.sort == "builtin" and function.name in ("hasattr", "getattr", "setattr") and len(node.args) > 1:
            kind = self._objects.of(node.args[0], scope)
            names = self._named_members(node, scope)
            if kind.sort in LOSE_TRACK:
                self._fault(node, f"cannot tell what {ast.unparse(node.args[0])} is, of which a name is asked for")
            elif kind.sort in ("module", "class", "object"):
                if function.name == "hasattr" or (function.name == "getattr" and len(node.args) > 2):
                    self._asks(node, names, scope)
                elif names:
                    self._use(names, node, scope, guards)
                else:
                    self._fault(node, f"cannot tell which name {ast.unparse(node.args[1])} is")

    def _asks(self, node: ast.Call, names: tuple[str, ...], scope: Scope) -> None:
        if not names:
            self._fault(node, f"cannot tell which names {ast.unparse(node)} may ask for")
        self.found.asked.setdefault(scope.title, set()).update(names)
        for name in names:
            if not in_some_version(name):
                self._fault(node, f"no version has {name}")


def _leaves(block: Sequence[ast.stmt]) -> bool:
    """Whether what follows a block is never reached through it."""
    return bool(block) and isinstance(block[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)
