"""The mutation check: a module is judged by tests that reach it, and only by tests that pass without a mutant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.judges import ROOMS, Judges
from tests.mutants.plant import BaselineError, Mutant, Tree, mutants_of, pure_modules, survivors_of

ROOT = Path(__file__).parents[2]
MODULE = Path("graphs/doubled.py")


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A tree of one module, a test that imports it, and a namesake of both in another room."""
    files = {
        MODULE: "def doubled(x):\n    return x * 2\n",
        Path("tests/graphs/test_doubled.py"): (
            "from graphs.doubled import doubled\n\ndef test_it():\n    assert doubled(3) == 6\n"
        ),
        Path("glm_export/sessions/doubled.py"): "",
        Path("tests/sessions/test_doubled.py"): "from glm_export.sessions import doubled\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def mutants(planted: Path) -> list[Mutant]:
    return list(mutants_of(MODULE, root=planted))


class _Always(Judges):
    """One test file for every module."""

    def of(self, module: Path) -> list[str]:
        return ["tests/graphs/test_doubled.py"]


def test_a_fault_is_noticed_and_one_that_nobody_sees_survives(planted: Path) -> None:
    tree, judges = Tree(planted), _Always(planted)
    chosen = mutants(planted)
    assert [mutant.change for mutant in chosen] == ["Mult -> Add", "2 -> 3"]
    assert survivors_of(chosen, tree, judges) == []
    test = planted / "tests/graphs/test_doubled.py"
    test.write_text(test.read_text().replace("(3) == 6", "(2) == 4"))  # 2 + 2 is 2 * 2
    assert [mutant.change for mutant in survivors_of(chosen, tree, judges)] == ["Mult -> Add"]
    assert (planted / MODULE).read_text() == "def doubled(x):\n    return x * 2\n"


@pytest.mark.parametrize("test", ["def test_it():\n    assert False\n", "import nothing_of_this_name\n", ""])
def test_tests_that_fail_anyway_judge_nothing(planted: Path, test: str) -> None:
    """An empty file runs no test, which is no verdict either."""
    (planted / "tests/graphs/test_doubled.py").write_text(test)
    with pytest.raises(BaselineError, match="fails without a mutant"):
        survivors_of(mutants(planted), Tree(planted), _Always(planted))


def test_namesakes_in_other_rooms_are_no_judges() -> None:
    judges = Judges(ROOT)
    cache = judges.of(Path("graphs/rules/qdq/kv_cache.py"))
    assert "tests/sessions/test_kv_cache.py" not in cache
    assert "tests/calibration/test_quantized.py" in cache
    assert judges.of(Path("graphs/rules/ort/skip_norm.py"))[0] == "tests/graphs/rules/ort/test_skip_norm.py"


def test_who_imports_the_importer_judges_and_who_reaches_nothing_is_named(tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    (tmp_path / "graphs/list").mkdir()
    (tmp_path / "graphs/list/__init__.py").write_text("for m in iter_modules(__path__):\n    pass\n")
    for name in ("graphs/list/equal.py", "graphs/lonely.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "tests/graphs").mkdir()
    (tmp_path / "tests/graphs/test_list.py").write_text("def test_it():\n    from glm_export.graphs import list\n")
    judges = Judges(tmp_path)
    assert judges.of(Path("graphs/list/equal.py")) == ["tests/graphs/test_list.py"]
    with pytest.raises(LookupError, match="no test imports"):
        judges.of(Path("graphs/lonely.py"))


def test_every_pure_module_has_judges_that_exist() -> None:
    judges = Judges(ROOT)
    for module in pure_modules():
        assert all((ROOT / path).is_file() for path in judges.of(module))
