"""Plant small faults in the pure modules, one at a time, and list those no test noticed: ``make mutants``.

Each mutant lives in a copy of the tree, changes one place of one module, and meets the test files that judge it
(``judges.py``), which must pass without it first.
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
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script
from tests.mutants.judges import Judges

ROOT = Path(__file__).parents[2]
PURE = (
    "glm_export/spec", "glm_export/inputs", "glm_export/objective", "glm_export/generation/sampling.py",
    "glm_export/generation/stopping.py", "glm_export/proof/compare.py", "calibration/formats",
    "calibration/quantize.py", "calibration/observers", "calibration/methods", "graphs/rules", "graphs/queries.py",
    "graphs/weight_traffic.py",
)  # fmt: skip
IGNORED = (".git", ".venv*", "out", "demo", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
PASSED = 0
SECONDS, PATIENCE = 60, 5
"""A mutant that takes longer than this, and as many times as long as no mutant at all, is an endless loop."""
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

    def __str__(self) -> str:
        return f"{self.module}:{self.line}  {self.change}"


def _nodes(tree: ast.Module) -> list[ast.AST]:
    """In a fixed order, so that a mutant finds its place in another parse of the same text."""
    return list(ast.walk(tree))


def mutants_of(module: Path, root: Path = ROOT) -> Iterator[Mutant]:
    """Every fault this script knows for a module; annotations and docstrings are left alone."""
    tree = ast.parse((root / module).read_text(encoding="utf-8"))
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
        elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":  # False as the program runs
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


class BaselineError(Exception):
    """Tests that fail without a mutant can judge none."""


@dataclass(frozen=True)
class Tree:
    """A copy of the repository in which one module at a time is changed."""

    folder: Path

    @classmethod
    def copied(cls, source: Path, folder: Path) -> Tree:
        """All of it but what git does not know either: tests read documents and examples, too."""
        shutil.copytree(source, folder, symlinks=True, ignore=shutil.ignore_patterns(*IGNORED), dirs_exist_ok=True)
        return cls(folder)

    def run(self, test: str, seconds: float | None = None) -> subprocess.CompletedProcess[bytes]:
        """Pytest over a file, until the first test that fails."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", test]
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, timeout=seconds, check=False
        )

    def baseline(self, test: str) -> float:
        """How long a test file takes on the tree as it is, in seconds.

        Raises:
            BaselineError: it fails.
        """
        began = time.monotonic()
        result = self.run(test)
        if result.returncode != PASSED:
            raise BaselineError(
                f"{test}: fails without a mutant (pytest: {result.returncode}), so every mutant would count "
                f"as killed; mend it first\n{result.stdout.decode()[-2000:]}{result.stderr.decode()[-2000:]}"
            )
        return time.monotonic() - began

    def survives(self, mutant: Mutant, test: str, seconds: float) -> bool:
        """Whether a test file passes all the same.

        Raises:
            RuntimeError: pytest itself failed, which says nothing of the mutant.
        """
        target = self.folder / mutant.module
        text = target.read_text(encoding="utf-8")
        tree = ast.parse(text)
        mutant.plant(tree)
        target.write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")
        try:
            result = self.run(test, seconds)
        except subprocess.TimeoutExpired:
            return False  # an endless loop is noticed
        finally:
            target.write_text(text, encoding="utf-8")
        # 1: a test failed, 2: a file could not be imported, negative: the process died of it.
        if result.returncode not in (PASSED, 1, 2) and result.returncode > 0:
            raise RuntimeError(f"pytest gave up ({result.returncode}): {result.stdout.decode()[-2000:]}")
        return result.returncode == PASSED


def survivors_of(chosen: Sequence[Mutant], tree: Tree, judges: Judges) -> list[Mutant]:
    """Plant one mutant after the other, and tell how each fares. A test file runs once without one before it judges."""
    survivors: list[Mutant] = []
    took: dict[str, float] = {}
    for number, mutant in enumerate(chosen, 1):
        alive = True
        for test in judges.of(mutant.module):
            if test not in took:
                took[test] = tree.baseline(test)
            alive = tree.survives(mutant, test, max(SECONDS, PATIENCE * took[test]))
            if not alive:
                break
        survivors += [mutant] * alive
        print(f"{number:3} of {len(chosen)}  {'SURVIVED' if alive else 'killed  '}  {mutant}", flush=True)
    return survivors


def main() -> None:
    """Plant, run, list."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--count", type=int, default=40)
    options.add_argument("--from", dest="first", type=int, default=1, help="go on with this mutant of the count")
    arguments = options.parse_args()
    every = [mutant for module in pure_modules() for mutant in mutants_of(module)]
    chosen = random.Random(arguments.seed).sample(every, min(arguments.count, len(every)))[arguments.first - 1 :]
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        try:
            survivors = survivors_of(chosen, Tree.copied(ROOT, Path(name)), Judges(ROOT))
        except (BaselineError, LookupError, RuntimeError) as error:
            sys.exit(str(error))
    print(f"\n{len(chosen) - len(survivors)} of {len(chosen)} mutants were killed (of {len(every)} known)")
    for mutant in survivors:
        print(f"survived: {mutant}")


if __name__ == "__main__":
    main()
