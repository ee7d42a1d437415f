"""Machines for a thousand, a hundred thousand and ten million users, by the simulation; tables and plots.

    python benchmarks/capacity/scale.py --steps steps.json --front front.json --out docs/images

For every machine: the most users that two replicas hold within the bounds, by halving; the rest is that many times.
``--steps``: of one machine, as `steps.py` measured them. ``--front``: of what stands before the engines, as `front.py`.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from machines import CHATGLM3, DEVICES, Machine, calculated, measured
from simulation import Behaviour, Cluster, Found, between_s, first_s, simulate

CHAT = Behaviour(think_s=60.0, question=(20, 200), answer=(50, 400), turns=5, system=200)
"""Asks, reads for a minute, asks on; five questions a conversation."""
BATCH = Behaviour(think_s=0.0, question=(100, 1000), answer=(50, 400))
FIRST_S, BETWEEN_S = 2.0, 0.1
"""Bounds of 99 of 100 answers: to the first token, and from one to the next."""
USERS = (1_000, 100_000, 10_000_000)
CELL = 2
"""Replicas that are simulated together."""
SECONDS = 300.0
COLUMN_OF_EDGE = 28 * 2 * 4 * 128 * 4
"""Bytes of a token's keys and values: GLM-Edge-1.5B, 28 layers, 4 key-value heads of 128, float32."""


@dataclass(frozen=True, kw_only=True)
class Front:
    """What stands before the engines. ``request_s``, ``token_s``: its processors' work for each."""

    request_s: float
    token_s: float


def cell(machine: Machine, users: int, routing: str = "prefix", replicas: int = CELL) -> Found:
    """Users on some replicas, each with a machine of its own."""
    cluster = Cluster(steps=machine.steps, replicas=replicas, routing=routing, keep_tokens=machine.keep_tokens)
    return simulate(cluster, users, CHAT, seconds=SECONDS)


def held(found: Found) -> bool:
    """Whether 99 of 100 answers are within the bounds."""
    return found.quantile(first_s, 99) <= FIRST_S and found.quantile(between_s, 99) <= BETWEEN_S


def most_users(machine: Machine) -> tuple[int, list[tuple[float, float]]]:
    """The most that a cell holds, to a tenth; and what was tried: users a replica, seconds to a first token."""
    tried: dict[int, Found] = {}

    def holds(users: int) -> bool:
        tried[users] = cell(machine, users)
        return held(tried[users])

    least, most = 0, 32
    while holds(most):
        least, most = most, 2 * most
    while most - least > max(1, least // 10):
        middle = (least + most) // 2
        least, most = (middle, most) if holds(middle) else (least, middle)
    return least, [(users / CELL, found.quantile(first_s, 99)) for users, found in sorted(tried.items())]


def described(machine: Machine, front: Front) -> dict[str, Any]:
    """A machine's line in each table."""
    most, tried = most_users(machine)
    if not most:
        alone = cell(machine, 1)
        return {"machine": machine.name, "known": machine.known, "users": 0, "first_s": alone.quantile(first_s, 99)}
    found = cell(machine, most)
    asked = len(found.answered) / found.seconds
    per_user = asked / most
    written = found.tokens_s / most
    scattered = cell(machine, most, "random")
    row: dict[str, Any] = {
        "machine": machine.name, "known": machine.known, "users": most / CELL, "first_s": found.quantile(first_s, 99),
        "between_s": found.quantile(between_s, 99), "busy": found.busy, "reused": found.reused,
        "random_reused": scattered.reused, "random_first_s": scattered.quantile(first_s, 99),
        "tried": tried, "tokens_s": found.tokens_s / CELL, "price": machine.price,
    }  # fmt: skip
    for users in USERS:
        machines = math.ceil(users * CELL / most)
        front_cpus = users * (per_user * front.request_s + written * front.token_s)
        row[f"{users}"] = {
            "machines": machines, "front_processors": math.ceil(front_cpus),
            "dollars_hour": machines * machine.price, "requests_s": users * per_user,
        }  # fmt: skip
    batch = simulate(
        Cluster(steps=machine.steps, replicas=1), 2 * machine.steps.options["max_rows"], BATCH, seconds=SECONDS
    )
    hours = 1e6 / (len(batch.answered) / batch.seconds) / 3600
    row["batch"] = {"tokens_s": batch.tokens_s, "machine_hours_a_million": hours, "dollars": hours * machine.price}
    return row


def drawn(rows: list[dict[str, Any]], folder: Path) -> None:
    """Seconds to a first token over users, for each machine; a cross where conversations go anywhere."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for row in filter(lambda one: one["users"], rows):
        users, first = zip(*row["tried"], strict=True)
        (line,) = axes.plot(users, first, marker=".", label=f"{row['machine']} ({row['known']})")
        axes.plot(row["users"], row["random_first_s"], "x", color=line.get_color())
    axes.axhline(FIRST_S, color="grey", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="users a replica", ylabel="seconds to a first token, 99 of 100")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center")
    figure.savefig(folder / "scaling.png", dpi=110)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=Path, required=True)
    arguments.add_argument("--name", default="2 vCPU, GLM-Edge-1.5B, int8-token")
    arguments.add_argument("--price", type=float, default=0.09)
    arguments.add_argument("--front", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--devices", nargs="*", choices=DEVICES, default=["L4", "H100"])
    arguments.add_argument("--again", type=Path, help="draw what was printed before")
    given = arguments.parse_args()
    front = Front(**json.loads(given.front.read_text()))
    machines = [
        measured(given.steps, name=given.name, column=COLUMN_OF_EDGE, keep_bytes=2e9, price=given.price),
        *(calculated(DEVICES[name], CHATGLM3, rows=64, context=800) for name in given.devices),
    ]
    rows = json.loads(given.again.read_text()) if given.again else [described(machine, front) for machine in machines]
    print(json.dumps(rows, indent=1))
    drawn(rows, given.out)


if __name__ == "__main__":
    main()
