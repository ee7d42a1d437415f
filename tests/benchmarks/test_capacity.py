"""The simulation where the answer is known: shared processors, one server's queue, conversations that stay."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

simpy = pytest.importorskip("simpy", reason="simpy is not installed")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "capacity"))

from machines import CHATGLM3, DEVICES, calculated  # noqa: E402
from simulation import Behaviour, Cluster, Processors, first_s, simulate, whole_s  # noqa: E402
from steps import Steps  # noqa: E402

ONE_ROW = {"max_rows": 1, "chunk_tokens": 512, "step_tokens": 1024}


def constant(seconds: float, options: dict[str, int] = ONE_ROW) -> Steps:
    return Steps(rows=[0], prompt_tokens=[0], seconds=[[seconds]], options=options, said="constant")


@pytest.mark.parametrize(
    ("processors", "ends"), [(1, [3, 5, 6]), (2, [1.5, 2.5, 3.5]), (3, [1, 2, 3]), (math.inf, [1, 2, 3])]
)
def test_processors_are_shared_alike(processors: float, ends: list[float]) -> None:
    """Jobs of 1, 2 and 3 seconds, begun together."""
    env = simpy.Environment()
    shared, ended = Processors(env, processors), []

    def job(seconds: float) -> Iterator[Any]:
        yield shared.work(seconds)
        ended.append(env.now)

    for seconds in (1, 2, 3):
        env.process(job(seconds))
    env.run()
    assert ended == pytest.approx(ends)


def test_a_queue_waits_as_theory_says() -> None:
    """One row, answers of one token in half a second, questions by chance: an M/D/1 queue, half busy."""
    behaviour = Behaviour(think_s=200.0, question=(10, 10), answer=(1, 1))
    found = simulate(Cluster(steps=constant(0.5), replicas=1), 200, behaviour, seconds=20_000)
    rate, busy = len(found.answered) / found.seconds, len(found.answered) / found.seconds * 0.5
    waited = sum(map(whole_s, found.answered)) / len(found.answered) - 0.5
    assert rate == pytest.approx(1.0, rel=0.03)
    # Pollaczek and Khinchine, for a constant service: rho * D / (2 * (1 - rho)).
    assert waited == pytest.approx(busy * 0.5 / (2 * (1 - busy)), rel=0.08)
    assert found.busy == pytest.approx(busy, rel=0.02)


def test_rows_are_written_together() -> None:
    options = {"max_rows": 4, "chunk_tokens": 512, "step_tokens": 4096}
    behaviour = Behaviour(think_s=0.0, question=(8, 8), answer=(10, 10))
    alone, together = (
        simulate(Cluster(steps=constant(1.0, options), replicas=1), users, behaviour, seconds=2000) for users in (1, 4)
    )
    assert together.tokens_s == pytest.approx(4 * alone.tokens_s, rel=0.01) == pytest.approx(4.0, rel=0.01)
    assert alone.quantile(whole_s, 50) == pytest.approx(10.0)


def test_conversations_that_stay_are_read_once() -> None:
    chats = Behaviour(think_s=5.0, question=(50, 50), answer=(5, 5), turns=8, system=100)
    steps = Steps(rows=[0], prompt_tokens=[0, 1000], seconds=[[0.01, 1.01]], options=ONE_ROW | {"max_rows": 4}, said="")
    stays, anywhere, forgotten = (
        simulate(Cluster(steps=steps, replicas=4, routing=routing, keep_tokens=kept), 40, chats, seconds=2000)
        for routing, kept in (("prefix", 1 << 20), ("random", 1 << 20), ("prefix", 100))
    )
    assert stays.reused > anywhere.reused + 0.1 > 0.3
    assert forgotten.reused == 0
    assert stays.quantile(first_s, 50) < anywhere.quantile(first_s, 50) < forgotten.quantile(first_s, 50)


def test_a_data_sheet_says_how_long_a_step_is() -> None:
    machine = calculated(DEVICES["L4"], CHATGLM3, rows=64, context=800)
    # All weights once, at 0.6 of 300 GB/s, and 2 ms.
    assert machine.steps.step_s(1, 0) == pytest.approx(0.002 + 6.24e9 / 300e9 / 0.6, rel=0.01)
    assert machine.steps.step_s(64, 2048) > machine.steps.step_s(64, 0) > machine.steps.step_s(1, 0)
    assert machine.steps.step_s(0, 4096) > 1.5 * machine.steps.step_s(0, 2048)
