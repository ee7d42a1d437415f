"""Machines for a thousand, a hundred thousand and ten million users, by the simulation; tables and plots.

    python benchmarks/capacity/scale.py --steps steps.json --front front.json --out docs/images

For every machine: the most users that four replicas hold within the bounds, by halving; the rest is that many times.
``--steps``: of one machine, as `steps.py` measured them. ``--front``: of what stands before the engines, as `front.py`.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from machines import CHATGLM3, DEVICES, Machine, calculated, measured
from simulation import Behaviour, Cluster, Found, between_s, first_s, simulate

CHAT = Behaviour(think_s=60.0, question=(20, 200), answer=(50, 400), turns=5, system=200)
"""Asks, reads for a minute, asks on; five questions a conversation."""
BATCH = Behaviour(think_s=0.0, question=(100, 1000), answer=(50, 400))
FIRST_S, BETWEEN_S = 2.0, 0.1
"""Bounds of 99 of 100 answers: to the first token, and from one to the next."""
USERS = (1_000, 100_000, 10_000_000)
CELL = 4
"""Replicas that are simulated together."""
SECONDS = 600.0
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


def most_users(machine: Machine, routing: str = "prefix") -> int:
    """The most that a cell holds, to a twentieth."""
    least, most = 1, 64
    if not held(cell(machine, least, routing)):
        return 0
    while held(cell(machine, most, routing)):
        least, most = most, 2 * most
    while most - least > max(1, least // 20):
        middle = (least + most) // 2
        least, most = (middle, most) if held(cell(machine, middle, routing)) else (least, middle)
    return least


def described(machine: Machine, front: Front) -> dict[str, object]:
    """A machine's line in each table."""
    most = most_users(machine)
    if not most:
        alone = cell(machine, 1)
        return {"machine": machine.name, "known": machine.known, "users": 0, "first_s": alone.quantile(first_s, 99)}
    found = cell(machine, most)
    asked = len(found.answered) / found.seconds
    per_user = asked / most
    written = found.tokens_s / most
    scattered = cell(machine, most, "random")
    row: dict[str, object] = {
        "machine": machine.name, "known": machine.known, "users": most / CELL, "first_s": found.quantile(first_s, 99),
        "between_s": found.quantile(between_s, 99), "busy": found.busy, "reused": found.reused,
        "random_reused": scattered.reused, "random_first_s": scattered.quantile(first_s, 99),
        "random_users": most_users(machine, "random") / CELL, "tokens_s": found.tokens_s / CELL, "price": machine.price,
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


def drawn(machines: list[Machine], rows: list[dict[str, object]], folder: Path) -> None:
    """First token over users for each machine, and conversations that stay against those that do not."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for machine, row in zip(machines, rows, strict=True):
        if not row["users"]:
            continue
        most = int(float(str(row["users"])) * CELL)
        counts = sorted({max(1, int(most * share)) for share in (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25)})
        for axes, routing, style in ((left, "prefix", "-"), (right, "prefix", "-"), (right, "random", ":")):
            label = f"{machine.name} ({machine.known})" if axes is left else None
            values = [cell(machine, count, routing).quantile(first_s, 99) for count in counts]
            axes.plot([count / CELL for count in counts], values, style, marker=".", label=label)
    for axes, title in (
        (left, "to the first token, 99 of 100"),
        (right, "conversations stay (line), or go anywhere (dots)"),
    ):
        axes.axhline(FIRST_S, color="grey", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="users a replica", ylabel="seconds", title=title)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8)
    figure.savefig(folder / "scaling.png", dpi=110)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=Path, required=True)
    arguments.add_argument("--name", default="2 vCPU, GLM-Edge-1.5B, int8-token")
    arguments.add_argument("--price", type=float, default=0.09)
    arguments.add_argument("--front", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    given = arguments.parse_args()
    front = Front(**json.loads(given.front.read_text()))
    machines = [
        measured(given.steps, name=given.name, column=COLUMN_OF_EDGE, keep_bytes=2e9, price=given.price),
        *(calculated(device, CHATGLM3, rows=64, context=800) for device in DEVICES.values()),
    ]
    rows = [described(machine, front) for machine in machines]
    print(json.dumps(rows, indent=1))
    drawn(machines, rows, given.out)


if __name__ == "__main__":
    main()
