"""What sessions do on a later ONNX Runtime than the GPU wheel's, which this process has: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

LATER = Path(sys.prefix) / "later"
ROOT = Path(__file__).parents[2]
RUN = """
import sys
import onnxruntime
import pytest
assert onnxruntime.__version__.startswith("1.32."), onnxruntime.__version__
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.skipif(onnxruntime.__version__.startswith("1.32."), reason="this process has it loaded")
@pytest.mark.skipif(not (LATER / "onnxruntime").is_dir(), reason=f"no ONNX Runtime 1.32 in {LATER}; make test puts it")
def test_ragged_calls() -> None:
    """The tests that run here as well, and those that are skipped here."""
    rules = ("graphs/rules/ort/test_query_lengths", "graphs/rules/ort/test_unpadded")
    names = ("sessions/test_ragged", "sessions/test_company", *rules)
    tests = [f"tests/{name}.py" for name in names]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *tests, "-q", "-n", "0", "-p", "no:cacheprovider", "-rs"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(LATER), str(ROOT)])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "SKIPPED" not in done.stdout, done.stdout[-1000:]
