"""What GLM was made for: fill blanks from both sides, and judge by what would fill one.

python examples/fill_blanks.py [MODEL]
"""

from __future__ import annotations

import sys

from glm_export import infill, load_session, score


def main(model: str = "demo-glm") -> None:
    with load_session(model) as session:
        filled = infill(session, "春眠不觉晓，处处闻啼鸟。[sMASK]花落知多少。")
        print(filled.text, "|", *filled.fills)
        for label in score(session, "疑是地上霜。", pattern="床前明月[MASK]，{}", labels=["光", "风", "人"]):
            print(f"{label.label} {label.log_probability:8.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
