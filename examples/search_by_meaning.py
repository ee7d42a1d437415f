"""Texts nearest to a question, by the hidden states of an exported program.

python examples/search_by_meaning.py [CHECKPOINT]
"""

from __future__ import annotations

import sys
from tempfile import TemporaryDirectory

from glm_export import embed, export, load_session
from glm_export.embedded import poems


def main(checkpoint: str = "demo", question: str = "举头望明月，低头思故乡。") -> None:
    texts = ["".join(poem.lines) for poem in poems() if len(poem.lines) <= 4]
    with (
        TemporaryDirectory() as folder,
        load_session(export(checkpoint, f"{folder}/program", dialect="ort", hidden_states="last")) as session,
    ):
        vectors_NH = embed(session, texts, normalize=True)
        (asked_H,) = embed(session, [question], normalize=True)
    nearest = (vectors_NH @ asked_H).argsort()[::-1]
    for index in nearest[:3]:
        print(f"{vectors_NH[index] @ asked_H:.3f}  {texts[index][:24]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
