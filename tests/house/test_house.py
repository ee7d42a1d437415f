"""The house itself: links, wheel, import direction, size of rooms, public names."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import glm_export
from glm_export.artifacts.program import OnnxProgram

ROOT = Path(__file__).parents[2]
ROOMS = ("graphs", "calibration")
SOURCES = [
    path for folder in ("glm_export", "graphs", "calibration", "tests", "examples", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py") if not any(part.is_symlink() for part in (path, *path.parents))
] + [ROOT / "cli.py"]  # fmt: skip
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=cwd)


def test_links_lead_to_the_rooms() -> None:
    for name in (*ROOMS, "cli.py"):
        link = ROOT / "glm_export" / name
        assert link.is_symlink()
        assert link.resolve() == ROOT / name


def test_wheel_owns_one_name_and_holds_every_room(tmp_path: Path) -> None:
    """From the source distribution, as an installer on another machine would build it."""
    result = python("-m", "build", "--no-isolation", "--outdir", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"glm_export", f"glm_export-{wheel.name.split('-')[1]}.dist-info"}
    packaged = {name for name in names if name.startswith("glm_export/") and name.endswith(".py")}
    expected = {str(path.relative_to(ROOT)) for path in SOURCES if path.parts[len(ROOT.parts)] == "glm_export"}
    expected |= {f"glm_export/{path.relative_to(ROOT)}" for path in SOURCES if path.parts[len(ROOT.parts)] in ROOMS}
    assert packaged == expected | {"glm_export/cli.py"}
    for data in (
        "py.typed",
        "embedded/tang_poems.jsonl",
        "embedded/chatglm2/model.safetensors",
        "tokenizers/chat/prompts/text.jinja",
        "reports/page/report.css",
        "reports/page/report.html.jinja",
        "serving/page/index.html",
        "serving/page/icon.svg",
        *(f"serving/page/scripts/{path.name}" for path in (ROOT / "glm_export/serving/page/scripts").iterdir()),
        *(f"serving/page/styles/{path.name}" for path in (ROOT / "glm_export/serving/page/styles").iterdir()),
    ):
        assert f"glm_export/{data}" in names


@pytest.mark.parametrize("bare", ["graphs", "calibration", "cli"])
def test_linter_bans_the_bare_names(bare: str) -> None:
    planted = f"from {bare} import x\n\nprint(x)\n"
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", "glm_export/planted.py", "-"],
        input=planted, capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 1
    assert "second module object" in result.stdout


def test_imports_point_one_way_and_the_contract_can_fail(tmp_path: Path) -> None:
    """Import-linter keeps the layers (run by ``make test``); a planted upward import breaks them."""
    import shutil

    for name in ("glm_export", "graphs", "calibration"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "*.bin"),
        )
    for name in ("cli.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]

    def lint() -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)

    assert lint().returncode == 0
    modeling = tmp_path / "glm_export" / "modeling.py"
    modeling.write_text(modeling.read_text() + "\nfrom glm_export.exporter import export  # planted\n")
    broken = lint()
    assert broken.returncode == 1
    assert "glm_export.modeling -> glm_export.exporter.export" in broken.stdout.replace("\n", " ")


def test_files_and_functions_stay_small() -> None:
    too_long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > LONGEST_FILE:
            too_long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        too_long += [
            f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
        ]
    assert not too_long


def test_an_exported_folder_runs_without_torch(demo_program: OnnxProgram) -> None:
    """Torch takes seconds and hundreds of megabytes to import, and a served model has no use for it."""
    script = (
        "import sys\n"
        "from glm_export.cli import cli\n"
        f"words = ['generate', {str(demo_program.folder)!r}, '--prompt', '千山鸟飞绝，万径人踪灭。']\n"
        "cli(words, standalone_mode=False)\n"
        "sys.exit(', '.join({'torch', 'polygraphy', 'onnx', 'transformers'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.strip()) == (0, "")
    assert result.stdout.strip() == "孤舟蓑笠翁，独钓寒江雪。"


def test_help_needs_neither_torch_nor_onnxruntime() -> None:
    script = (
        "import sys\nfrom glm_export.cli import cli\n"
        "cli(['export', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'onnxruntime', 'polygraphy', 'onnx', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = python("-c", script)
    assert result.returncode == 0, result.stderr


def test_no_module_needs_test_packages() -> None:
    """Every module imports with transformers and optimum out of reach."""
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in SOURCES if path.parts[len(ROOT.parts)] == "glm_export"
    ]  # fmt: skip
    script = (
        "import sys, importlib\n"
        "for name in ('transformers', 'optimum', 'hypothesis', 'pytest'): sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    result = python("-W", "ignore", "-c", script)
    assert result.returncode == 0, result.stderr


def test_public_names() -> None:
    assert sorted(glm_export.__all__) == [
        "Engine", "GlmExportError", "Likelihood", "OnnxProgram", "Piece", "Sampling", "__version__", "bench",
        "build", "calibrate", "certify", "chat", "check", "embed", "export", "generate", "hidden_states", "infill",
        "load_engine", "load_program", "load_session", "logits", "loglikelihood", "open_checkpoint", "quality",
        "score", "stream", "verify",
    ]  # fmt: skip
    modules = {path.stem for path in (ROOT / "glm_export").iterdir()}
    assert not modules & set(glm_export.__all__)  # which one a name gave would depend on import order
    for name in glm_export.__all__:
        assert getattr(glm_export, name) is not None
    with pytest.raises(AttributeError):
        _ = glm_export.nonsense
