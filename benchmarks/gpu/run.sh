#!/usr/bin/env bash
# Everything a GPU can show so far: both embedded models, every dtype, in ONNX Runtime's CUDA provider.
# Usage: bash benchmarks/gpu/run.sh [PYTHON]; exits 3 where the provider cannot be loaded.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" - "$work" <<'PY'
import json, sys
from pathlib import Path

import onnxruntime

from glm_export import api
from glm_export.demo import fill_recall, poems, recall
from glm_export.sessions.ort import OrtSession

onnxruntime.preload_dlls()
print("onnxruntime", onnxruntime.__version__, onnxruntime.get_available_providers())
failed = []
for model, measure in (("demo", recall), ("demo-glm", fill_recall)):
    for dtype in ("float32", "float16", "bfloat16"):
        program = api.export(model, Path(sys.argv[1]) / f"{model}-{dtype}", dtype=dtype)
        with OrtSession(program) as session:
            provider = session.runtime.get_providers()[0]
            if provider != "CUDAExecutionProvider":
                sys.exit(print(f"the CUDA provider was not loaded, found {provider}") or 3)
            written = measure(session, poems())
        report = api.check(program, model)
        facts = {"needed": report.parity.needed, "passed": report.passed, "written": str(written)}
        print(model, dtype, provider, json.dumps(facts))
        if not report.passed:
            failed.append(f"{model} {dtype}")
sys.exit(f"failed: {failed}" if failed else 0)
PY
