"""A chunk of a prompt beside rows that decode: in one call, and in two.

    python benchmarks/sessions/chunk_beside_rows.py DIR --rows 7 --chunk 16 58 128

DIR is an exported folder of `ort` of a causal family; wants ONNX Runtime 1.32. Prints medians of milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import numpy as np

from glm_export import api
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.sessions.kv_cache import RowValues
from glm_export.sessions.session import Session

CONTEXT = 150


def milliseconds(session: Session, feeds: RightPaddedFeeds, calls: Sequence[Sequence[Sequence[int]]]) -> float:
    """What the calls take, one after another."""
    lengths = feeds.lengths.tolist()
    started = time.perf_counter()
    for tokens in calls:
        feeds = feeds.next_tokens(tokens)
        session.decode(feeds)
    took = 1e3 * (time.perf_counter() - started)
    for row, length in enumerate(lengths):
        cut = session.truncate(feeds, row, length)
        assert isinstance(cut, RightPaddedFeeds)
        feeds = cut
    return took


def main() -> None:
    """Print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder")
    options.add_argument("--rows", type=int, default=7, help="that decode")
    options.add_argument("--chunk", type=int, nargs="+", default=[16, 58, 128], help="tokens of one row's prompt")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--threads", type=int, default=2)
    asked = options.parse_args()
    random = np.random.default_rng(0)
    with api.load_session(asked.folder, cache=True, threads=asked.threads) as session:
        description = session.describe()
        if not description.ragged:
            options.error(f"onnxruntime {description.version} reads no such call; 1.32 on a CPU does")
        session.cache.clear()
        empty = session.admit(RightPaddedFeeds.holding([]), [RowValues(length=0)] * (asked.rows + 1))
        held = empty.next_tokens([*random.integers(300, 2000, (asked.rows, CONTEXT)).tolist(), ()])
        session.decode(held)
        step: list[Sequence[int]] = [[7]] * asked.rows
        print("| chunk | in one call | in two | of which the step |\n|---|---|---|---|")
        for count in asked.chunk:
            chunk = random.integers(300, 2000, count).tolist()
            at_rest: list[Sequence[int]] = [()] * asked.rows
            together, apart = [[*step, chunk]], [[*step, ()], [*at_rest, chunk]]
            found: dict[str, list[float]] = {"together": [], "apart": [], "step": []}
            for number in range(asked.rounds + 1):
                one = {"together": together, "apart": apart, "step": apart[:1]}
                for name, calls in one.items():
                    took = milliseconds(session, held, calls)
                    if number:  # the first warms up
                        found[name].append(took)
            middle = {name: statistics.median(values) for name, values in found.items()}
            print(f"| {count} | {middle['together']:.0f} | {middle['apart']:.0f} | {middle['step']:.0f} |")


if __name__ == "__main__":
    main()
