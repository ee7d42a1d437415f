"""Multiple choice by log-likelihood, as evaluation harnesses ask it: the likeliest continuation, token by token.

python examples/choose_an_answer.py [MODEL]
"""

from __future__ import annotations

import sys

from glm_export import load_session, loglikelihood

QUESTION = "床前明月光，"
CHOICES = ("疑是地上霜。", "黄河入海流。", "万径人踪灭。")


def main(model: str = "demo") -> None:
    with load_session(model) as session:
        found = loglikelihood(session, [(QUESTION, choice) for choice in CHOICES])
    for choice, told in sorted(zip(CHOICES, found, strict=True), key=lambda pair: -pair[1].mean):
        print(f"{told.mean:8.3f} a token  {QUESTION}{choice}{'  what it would write' if told.greedy else ''}")


if __name__ == "__main__":
    main(*sys.argv[1:])
