"""From a checkpoint to a program that provably says the same: export, check, generate.

python examples/export_and_prove.py [CHECKPOINT] [OUT]
"""

from __future__ import annotations

import sys

from glm_export import check, export, generate, load_session


def main(checkpoint: str = "demo", out: str = "poems-onnx") -> None:
    program = export(checkpoint, out, dialect="ort", force=True)
    report = check(program, checkpoint)
    print(report)
    if not report.passed:
        sys.exit(1)
    with load_session(program) as session:
        print(generate(session, "床前明月光，疑是地上霜。", max_new_tokens=13).strip())


if __name__ == "__main__":
    main(*sys.argv[1:])
