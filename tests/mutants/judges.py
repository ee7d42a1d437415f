"""Which test files judge a module: those that import it, then those that import what imports it, and so on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("glm_export", "graphs", "calibration", "tests")
MOST = 4
"""Test files a module is judged by at most, besides those of the whole road."""
NO_JUDGES = ("house", "mutants", "performance", "terminal")
"""Rooms whose tests import much and compute little, start whole commands, or take time for what they show."""
WHOLE_ROAD = {
    "graphs/rules/opset17": "tests/graphs/test_dialects.py",
    "graphs/rules/ort": "tests/graphs/test_dialects.py",
    "graphs/rules/qdq": "tests/calibration/test_quantized.py",
    "graphs/rules/tensorrt": "tests/graphs/test_tensorrt_dialect.py",
}
"""A rule's own test shows its numbers on a small graph, that of its dialect in a whole program."""


def dotted(path: Path) -> str:
    """A file's import path. The rooms beside the package are imported through its links."""
    parts = path.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return name if name.startswith(("glm_export", "tests")) else f"glm_export.{name}"


def imported(text: str) -> Iterator[str]:
    """What a file may import, in functions too, by full path; of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class Judges:
    """Who imports whom in a tree, and so whose tests notice a fault."""

    def __init__(self, root: Path) -> None:
        paths = [
            path.relative_to(root) for room in ROOMS for path in sorted((root / room).rglob("*.py"))
            if not any(part.is_symlink() for part in (path, *path.parents))
        ]  # fmt: skip
        texts = {path: (root / path).read_text(encoding="utf-8") for path in paths}
        self._path_of = {dotted(path): path for path in paths}
        self._size = {path: len(text) for path, text in texts.items()}
        self._importers: dict[Path, set[Path]] = {path: set() for path in paths}
        for path, text in texts.items():
            for name in imported(text):
                if name in self._path_of:
                    self._importers[self._path_of[name]].add(path)
            # Lists of equals are imported by whoever imports their room.
            if path.name == "__init__.py" and "iter_modules(__path__)" in text:
                for other in paths:
                    if other.parent == path.parent and other != path:
                        self._importers[other].add(path)

    def of(self, module: Path) -> list[str]:
        """The test files that judge a module, relative to the root; the best placed first.

        Raises:
            LookupError: no test reaches it.
        """
        chosen: list[Path] = []
        nearest, seen = {module}, {module}
        room = dotted(module).split(".")[1]
        while nearest and len(chosen) < MOST:
            nearest = {importer for path in nearest for importer in self._importers[path]} - seen
            seen |= nearest
            tests = [path for path in nearest if path.name.startswith("test_") and path.parts[1] not in NO_JUDGES]
            chosen += sorted(tests, key=lambda path: (path.parts[1] != room, self._size[path], path))
        if not chosen:
            raise LookupError(f"no test imports {module}, nor anything that does; give it one")
        whole = [Path(WHOLE_ROAD[folder])] if (folder := str(module.parent)) in WHOLE_ROAD else []
        return [str(path) for path in dict.fromkeys((*chosen[:MOST], *whole))]
