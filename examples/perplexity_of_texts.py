"""Perplexity of texts by teacher forcing: how surprised a model is by each token that is there.

python examples/perplexity_of_texts.py [MODEL]
"""

from __future__ import annotations

import sys

import numpy as np

from glm_export import load_session, logits

TEXTS = {
    "a poem it knows": "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "the same, shuffled": "光月明前床，霜上地是疑。月明望头举，乡故思头低。",
}


def main(model: str = "demo") -> None:
    with load_session(model) as session:
        for name, text in TEXTS.items():
            ids = session.encode(text)
            scores_SV = logits(session, ids).astype(np.float64)
            # Row k says what follows ids 0 … k.
            log_z_S = np.logaddexp.reduce(scores_SV, axis=1)
            surprises = [log_z_S[k] - scores_SV[k, ids[k + 1]] for k in range(len(ids) - 1)]
            print(f"{name:20} perplexity {np.exp(np.mean(surprises)):10.2f} over {len(surprises)} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
