"""What may be written, decided token by token: a bias, and a processor of one's own.

python examples/steer_the_text.py [MODEL]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from glm_export import Sampling, generate, load_session

PROMPT = "床前明月光，"


def main(model: str = "demo") -> None:
    with load_session(model) as session:
        # A text of its own may begin with a mark of its beginning.
        comma, stop = (session.tokenizer.encode_plain(mark)[-1] for mark in "，。")

        def no_repeats(ids: Sequence[int], scores_V: NDArray[np.float64]) -> NDArray[np.float64]:
            """Nothing that stands in the text already, but for punctuation."""
            scores_V[[token for token in set(ids) if token not in (comma, stop)]] = -np.inf
            return scores_V

        for name, sampling in (
            ("as it is", Sampling()),
            ("no full stop", Sampling(logit_bias={stop: -np.inf})),
            ("no character twice", Sampling(processors=(no_repeats,))),
        ):
            print(f"{name:20} {PROMPT}{generate(session, PROMPT, max_new_tokens=18, sampling=sampling)!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
