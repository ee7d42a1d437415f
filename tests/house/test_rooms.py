"""The rules that keep the rooms: each is a function of a tree of sources, and is shown to fire on a planted one."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glm_export.calibration import recipes
from glm_export.graphs import dialects
from tests.mutants.judges import dotted, imported

ROOT = Path(__file__).parents[2]
Tree = dict[str, str]
"""Path -> source."""

TOP_LEVEL = {
    "__init__", "__main__", "api", "artifacts",
    "calibration", "certificates", "checkpoints", "cli", "cluster", "deployment",
    "embedded", "engines", "errors", "evaluation", "exporter", "families", "generation", "graphs", "inputs", "machine",
    "model_folder", "modeling", "objective", "performance", "progress", "proof", "reports", "serving", "sessions",
    "spec", "store", "terminal", "tokenizers",
}  # fmt: skip
MOST_FILES = 12
ONE_FILE_EACH = {"glm_export/families", "calibration/recipes"}
"""Lists of equals, found by name: they grow by design."""
# The rooms that know a vendor's library.
VENDORS = {
    "onnxruntime": ("glm_export/sessions/onnxruntime/",),
    "polygraphy": ("glm_export/proof/", "glm_export/engines/"),
    "tensorrt": (),  # engines/vendor.py finds them by name
    "tensorrt_rtx": (),
    "onnx": ("graphs/", "glm_export/engines/", "glm_export/exporter/", "glm_export/proof/", "glm_export/deployment/"),
    "onnx_ir": ("graphs/", "glm_export/engines/", "glm_export/exporter/", "glm_export/proof/"),
    "onnxscript": ("graphs/",),
    # rich-click has all of it but what answers shells.
    "click": ("glm_export/terminal/frame/completion.py",),
    "rich_click": ("cli.py", "glm_export/terminal/"),
    "rich": ("cli.py", "glm_export/terminal/", "glm_export/progress.py"),
    "fastapi": ("glm_export/serving/",),
    "uvicorn": ("glm_export/serving/",),
    "prometheus_client": ("glm_export/serving/",),
    "llguidance": ("glm_export/generation/grammars/",),
    "model_signing": ("glm_export/certificates/",),
    "in_toto_attestation": ("glm_export/certificates/",),
    "securesystemslib": ("glm_export/certificates/",),
    "cryptography": ("glm_export/certificates/",),
    "fsspec": ("glm_export/store/",),
    "aiohttp": ("glm_export/store/",),
    "s3fs": (),  # fsspec finds them by their schemes
    "gcsfs": (),
    "adlfs": (),
    "filelock": ("glm_export/store/",),
    "matplotlib": ("glm_export/reports/",),
    "tritonclient": ("glm_export/serving/triton/",),
    "triton_python_backend_utils": ("glm_export/serving/triton/",),
    "ray": ("glm_export/cluster/", "glm_export/serving/ray/"),
}
# What merely has a dialect's or a recipe's name: packages, runtimes, and one recipe whose programs need an option.
NAMESAKES = {
    ("glm_export/engines/vendor.py", "tensorrt"): "the runtime",
    ("glm_export/serving/triton/options.py", "tensorrt"): "Triton's backend",
    ("glm_export/proof/check_engine.py", "tensorrt"): "the runner",
    ("glm_export/artifacts/manifest.py", "onnx"): "the package",
    ("cli.py", "onnx"): "the package",
    ("glm_export/reports/run.py", "onnx"): "the package",
    ("glm_export/reports/run.py", "tensorrt"): "the package",
    ("glm_export/engines/layers.py", "fp8"): "TensorRT's spelling of a dtype",
    ("glm_export/checkpoints/quantized/block_fp8.py", "fp8"): "what configs call the method",
    ("glm_export/spec/session_entries.py", "fp8"): "ONNX Runtime 1.31 fails on its Q/DQ unless told otherwise",
}
SIBLINGS = {
    ("glm_export/spec", "weight"): "a format is how a weight is stored here, the map what publishers call it",
    ("glm_export/exporter", "weight"): "three steps of one file; a room of their own once there is a fourth",
}
"""Folder and prefix of siblings that may share one, and why."""
FMT_SKIPS = 67
"""87 when the rooms were made; lines that ruff would spread over a screen. It may only go down."""


def sources() -> Tree:
    """The code, each file once."""
    paths = [
        path for room in ("glm_export", "graphs", "calibration") for path in (ROOT / room).rglob("*.py")
        if not any(part.is_symlink() for part in (path, *path.parents))
    ]  # fmt: skip
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (*paths, ROOT / "cli.py")}


def strange_modules(tree: Tree) -> Iterator[str]:
    """Modules at the top of the package that nobody planned: a missing room begins as one of them."""
    for path in tree:
        parts = path.split("/")
        if parts[0] == "glm_export" and parts[1].removesuffix(".py") not in TOP_LEVEL:
            yield f"{path}: put it into a room, or a new room into the list, the contract and the architecture"


def crowded_folders(tree: Tree) -> Iterator[str]:
    """Folders of more files than a reader takes in at once."""
    for folder, count in Counter(path.rpartition("/")[0] for path in tree).items():
        if count > MOST_FILES and folder not in ONE_FILE_EACH:
            yield f"{folder} has {count} files, {MOST_FILES} at most: it holds two rooms"


def siblings_with_a_prefix(tree: Tree) -> Iterator[str]:
    """``a_b`` beside ``a_c``: the room ``a`` is missing."""
    prefixes = Counter(
        (path.rpartition("/")[0], path.rpartition("/")[2].removeprefix("_").partition("_")[0])
        for path in tree
        if "_" in path.rpartition("/")[2].removeprefix("_") and not path.endswith("__init__.py")
    )
    for (folder, prefix), count in prefixes.items():
        if count > 1 and folder not in ONE_FILE_EACH and (folder, prefix) not in SIBLINGS:
            yield f"{folder}: {count} siblings begin with {prefix}_"


def foreign_imports(tree: Tree) -> Iterator[str]:
    """A vendor's library outside its rooms."""
    for path, text in tree.items():
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                rooms = VENDORS.get(name.split(".")[0])
                if rooms is not None and not path.startswith(rooms or ("nowhere",)):
                    yield f"{path} imports {name}, which only {', '.join(rooms) or 'nobody'} may"


def misplaced_names(tree: Tree) -> Iterator[str]:
    """Names of dialects and recipes as literals outside their rooms."""
    names = {*dialects.names(), *recipes.names()}
    for path, text in tree.items():
        if path.startswith(("graphs/dialects/", "calibration/recipes/")):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and node.value in names and (path, node.value) not in NAMESAKES:
                yield f"{path}:{node.lineno} {node.value!r}: ask the record what it can"


def skipped_formats(tree: Tree) -> Iterator[str]:
    """More lines left out of formatting than there were."""
    count = sum(text.count("# fmt: skip") for text in tree.values())
    if count > FMT_SKIPS:
        yield f"{count} times fmt: skip, {FMT_SKIPS} at most"


def rules_without_a_test(tree: Tree) -> Iterator[str]:
    """Files of graph rules without a test file of their own that imports them."""
    tests = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in (ROOT / "tests/graphs/rules").rglob("test_*.py")
    }
    for path in tree:
        folder, _, leaf = path.rpartition("/")
        if not path.startswith("graphs/rules/") or leaf == "__init__.py":
            continue
        test = f"tests/{folder}/test_{leaf}"
        if dotted(Path(path)) not in imported(tests.get(test, "")):
            yield f"{path}: give it {test}, with its smallest graph, its numbers, and one it must leave alone"


RULES: list[tuple[Callable[[Tree], Iterator[str]], Tree]] = [
    (strange_modules, {"glm_export/leftovers.py": ""}),
    (crowded_folders, {f"glm_export/room/{number}.py": "" for number in range(MOST_FILES + 1)}),
    (siblings_with_a_prefix, {"glm_export/room/show_this.py": "", "glm_export/room/show_that.py": ""}),
    (foreign_imports, {"glm_export/evaluation/measure.py": "def f():\n    import onnxruntime.capi\n"}),
    (foreign_imports, {"calibration/recipe.py": "from onnx_ir import Model\n"}),
    (misplaced_names, {"glm_export/exporter/export.py": "if dialect == 'ort':\n    pass\n"}),
    (misplaced_names, {"calibration/ranges.py": "NAME = 'int4-gptq'\n"}),
    (rules_without_a_test, {"graphs/rules/ort/nobody_tests_this.py": ""}),
    (skipped_formats, {"cli.py": "# fmt: skip\n" * (FMT_SKIPS + 1)}),
]


@pytest.mark.parametrize(("rule", "planted"), RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_rules_hold_and_fire(rule: Callable[[Tree], Iterator[str]], planted: Tree) -> None:
    assert list(rule(sources())) == []
    assert list(rule(planted))


def test_exceptions_are_still_needed() -> None:
    tree = sources()
    for path, name in NAMESAKES:
        assert f'"{name}"' in tree[path], f"{path} no longer says {name}"


def room_table(text: str) -> dict[str, str]:
    """Rows of the architecture's tables: room -> what lives there."""
    return dict(re.findall(r"^\| `([\w/]+(?:/|\.py))` \| (.+) \|$", text, flags=re.MULTILINE))


def test_the_architecture_says_what_the_rooms_say() -> None:
    table = room_table((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    tree = sources()
    assert len(table) > len(TOP_LEVEL)
    for room, said in table.items():
        text = tree[room if room.endswith(".py") else f"{room}__init__.py"]
        docstring = ast.get_docstring(ast.parse(text)) or ""
        assert said == docstring.split("\n\n")[0].replace("\n", " ").replace("``", "`"), room
    rooms = {f"glm_export/{name}" for name in TOP_LEVEL - {"__init__", "__main__", "calibration", "graphs", "cli"}}
    missing = rooms - {room.removesuffix(".py").removesuffix("/") for room in table}
    assert not missing
