from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.planted_results import record


@pytest.fixture
def at(tmp_path: Path) -> Any:
    """A kit with its folders."""
    made = record.Kit(work=tmp_path / "work", out=tmp_path / "out")
    made.out.mkdir()
    return made
