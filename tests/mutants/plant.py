"""Plant small faults in the pure modules, one at a time, and list those no test noticed: ``make mutants``.

Each mutant lives in a copy of the tree, changes one place of one module, and meets the test files that name it.
mutmut and cosmic-ray were not taken: both mutate installed packages by their path, and two of the three rooms they
would have to know are reached through links.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PURE = (
    "glm_export/spec", "glm_export/inputs", "glm_export/objective", "glm_export/generation/sampling.py",
    "glm_export/generation/stopping.py", "glm_export/proof/compare.py", "calibration/formats",
    "calibration/quantize.py", "calibration/observers", "calibration/methods", "graphs/rules", "graphs/queries.py",
    "graphs/weight_traffic.py",
)  # fmt: skip
TREE = ("glm_export", "graphs", "calibration", "tests", "cli.py", "pyproject.toml")
SECONDS = 240
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One fault: where, what it was, what it is. ``plant`` changes a fresh tree of the module in place."""

    module: Path
    line: int
    change: str
    plant: Callable[[ast.Module], None]


def _nodes(tree: ast.Module) -> list[ast.AST]:
    """In a fixed order, so that a mutant finds its place in another parse of the same text."""
    return list(ast.walk(tree))


def mutants_of(module: Path) -> Iterator[Mutant]:
    """Every fault this script knows for a module; annotations and docstrings are left alone."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    for index, node in enumerate(_nodes(tree)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            other = COMPARISONS[type(node.ops[0])]
            yield Mutant(module, line, f"{type(node.ops[0]).__name__} -> {other.__name__}", _comparison(index, other))
        elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _is_text_or_type(node):
            operator = ARITHMETIC[type(node.op)]
            yield Mutant(module, line, f"{type(node.op).__name__} -> {operator.__name__}", _arithmetic(index, operator))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)
        ):
            yield Mutant(module, line, f"{node.value} -> {node.value + 1}", _constant(index))
        elif isinstance(node, ast.BoolOp):
            yield Mutant(module, line, f"{type(node.op).__name__} turned", _boolean(index))
        elif isinstance(node, ast.If):
            yield Mutant(module, line, "condition -> False", _condition(index))


def _is_text_or_type(node: ast.BinOp) -> bool:
    text = ast.unparse(node)
    return any(mark in text for mark in ("'", '"', "None"))


def _at(index: int, change: Callable[[ast.AST], None]) -> Callable[[ast.Module], None]:
    return lambda tree: change(_nodes(tree)[index])


def _comparison(index: int, other: type[ast.cmpop]) -> Callable[[ast.Module], None]:
    return _at(index, lambda node: node.ops.__setitem__(0, other()))


def _arithmetic(index: int, operator: type[ast.operator]) -> Callable[[ast.Module], None]:
    return _at(index, lambda node: setattr(node, "op", operator()))


def _constant(index: int) -> Callable[[ast.Module], None]:
    return _at(index, lambda node: setattr(node, "value", node.value + 1))


def _boolean(index: int) -> Callable[[ast.Module], None]:
    return _at(index, lambda node: setattr(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And()))


def _condition(index: int) -> Callable[[ast.Module], None]:
    return _at(index, lambda node: setattr(node, "test", ast.Constant(False)))


def pure_modules() -> list[Path]:
    """Those that are mutated, in order."""
    found = [path for name in PURE for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))]
    return sorted(path.relative_to(ROOT) for path in found if path.name != "__init__.py")


def tests_of(module: Path) -> list[str]:
    """Test files that name a module, the shortest first; where none does, those of its room."""
    dotted = ".".join(module.with_suffix("").parts)
    dotted = dotted if dotted.startswith("glm_export") else f"glm_export.{dotted}"
    package, _, leaf = dotted.rpartition(".")
    every = sorted((ROOT / "tests").rglob("test_*.py"), key=lambda path: path.stat().st_size)
    named = [
        path for path in every
        if f"from {dotted} import" in (text := path.read_text(encoding="utf-8"))
        or f"from {package} import {leaf}" in text
        or path.name == f"test_{leaf}.py"
    ]  # fmt: skip
    room = package.removeprefix("glm_export.").split(".")[0]
    chosen = named or [path for path in every if path.parent.name == room]
    return [str(path.relative_to(ROOT)) for path in chosen[:4]]


def survives(mutant: Mutant, folder: Path) -> bool:
    """Whether the tests that name its module pass all the same."""
    target = folder / mutant.module
    text = target.read_text(encoding="utf-8")
    tree = ast.parse(text)
    mutant.plant(tree)
    target.write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *tests_of(mutant.module)]
    try:
        result = subprocess.run(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        return result.returncode == 0
    except subprocess.TimeoutExpired:
        return False  # an endless loop is noticed
    finally:
        target.write_text(text, encoding="utf-8")


def main() -> None:
    """Plant, run, list."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--count", type=int, default=40)
    arguments = options.parse_args()
    every = [mutant for module in pure_modules() for mutant in mutants_of(module)]
    chosen = random.Random(arguments.seed).sample(every, min(arguments.count, len(every)))
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        for part in TREE:
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, folder / part)
        for number, mutant in enumerate(chosen, 1):
            alive = survives(mutant, folder)
            survivors += [mutant] * alive
            where = f"{mutant.module}:{mutant.line}"
            print(
                f"{number:3} of {len(chosen)}  {'SURVIVED' if alive else 'killed  '}  {where}  {mutant.change}",
                flush=True,
            )
    print(f"\n{len(chosen) - len(survivors)} of {len(chosen)} mutants were killed (of {len(every)} known)")
    for mutant in survivors:
        print(f"survived: {mutant.module}:{mutant.line}  {mutant.change}")


if __name__ == "__main__":
    main()
