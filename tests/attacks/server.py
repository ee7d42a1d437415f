"""Attack a server: ``python tests/attacks/server.py --count 2000 --seed 1``, or ``make attack-server``.

A server of the embedded models is sent what nobody should: requests that schemathesis makes of its OpenAPI document
(where ``--schemathesis`` names the program), valid ones with a few fields changed to anything, and those with bytes
changed. None may be answered with a status of 500 or more, or not at all; and afterwards the server lives, writes and
waits for nothing, and holds no more memory and files than after the first hundred.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.serving.http.conftest import started
from tests.serving.http.test_robust import FIELDS, VALUES

LINE = "春眠不觉晓，[MASK]"
TALK = [{"role": "user", "content": LINE}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "x", "parameters": {"type": "object"}}}]
SHORT = {"max_tokens": 4}
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TALK, "tools": TOOLS, "stream": False, **SHORT},
    "/v1/completions": {"prompt": LINE, "echo": True, "logprobs": 2, "n": 2, "stop": ["x"], **SHORT},
    "/v1/infill": {"model": "demo-glm", "text": LINE, **SHORT},
    "/v1/score": {"model": "demo-glm", "text": "好", "pattern": "{}很[MASK]", "labels": ["好", "不好"]},
    "/v1/responses": {"input": LINE, "max_output_tokens": 4, "stream": True},
    "/v1/messages": {"messages": TALK, "system": "x", "stream": True, **SHORT},
    "/v1/messages/count_tokens": {"messages": TALK},
    "/tokenize": {"prompt": LINE},
    "/detokenize": {"tokens": [5, 6]},
    "/apply-template": {"messages": TALK},
}
SECONDS = 120.0
GROWN_MB, GROWN_FILES = 96.0, 8
"""More than this after an attack is a leak: what is kept of prompts is bounded to 32 MB here."""
OPTIONS = ("--max-batch", "4", "--queue", "16", "--max-context", "256", "--prefix-megabytes", "32", "--deadline", "60")


class Attack:
    """What was sent, and how it was answered."""

    def __init__(self, address: str, pid: int) -> None:
        self.address, self.pid = address, pid
        self.statuses: Counter[int] = Counter()
        self.violations: list[str] = []

    def send(self, path: str, body: bytes) -> None:
        """One request."""
        headers = {"content-type": "application/json"}
        try:
            answer = httpx.post(f"{self.address}{path}", content=body, headers=headers, timeout=SECONDS)
        except httpx.HTTPError as error:
            self.violations.append(f"{path} {body[:200]!r}: {error!r}")
            return
        self.statuses[answer.status_code] += 1
        # A stream's status is sent before anything can go wrong in it.
        if answer.status_code >= 500 or b'"server_error"' in answer.content:
            self.violations.append(f"{path} {body[:200]!r}: {answer.status_code} {answer.text[:200]}")

    @property
    def held(self) -> tuple[float, int]:
        """Resident megabytes and open files."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        return resident / 1024, len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def busy(self) -> float:
        """Requests that are written or wait."""
        text = httpx.get(f"{self.address}/metrics", timeout=SECONDS).text
        return sum(
            float(one) for one in re.findall(r"^glm_requests_(?:running|waiting)\{.*\} (\S+)", text, re.MULTILINE)
        )


def changed(attack: Attack, count: int, number: int) -> None:
    """Valid requests, changed."""
    paths = st.sampled_from(sorted(VALID))
    fields = st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3)
    spoiled = st.none() | st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4))

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(paths, fields, spoiled)
    def send(path: str, fields: dict[str, Any], spoiled: tuple[int, bytes] | None) -> None:
        body = json.dumps(VALID[path] | fields).encode()
        if spoiled is not None:
            at = spoiled[0] % len(body)
            body = body[:at] + spoiled[1] + body[at + 1 :]
        attack.send(path, body)

    send()


def by_schema(attack: Attack, program: Path, count: int, number: int) -> int:
    """Requests made of the OpenAPI document; returns how many."""
    operations = sum(len(one) for one in httpx.get(f"{attack.address}/openapi.json").json()["paths"].values())
    command = [program, "run", f"{attack.address}/openapi.json", "--checks", "not_a_server_error", "--no-color"]
    command += ["--max-examples", str(max(1, count // operations)), "--seed", str(number), "--phases", "fuzzing"]
    command += ["--request-timeout", str(SECONDS), "--continue-on-failure"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) generated", done.stdout)
    if done.returncode or found is None:
        attack.violations.append(
            f"schemathesis ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
        )
    return int(found[1]) if found else 0


def main() -> None:
    """Print what was sent, and every violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--schemathesis", type=Path)
    asked = parser.parse_args()
    with started("demo", "demo-glm", *OPTIONS) as (address, process):
        attack = Attack(address, process.pid)
        changed(attack, 100, asked.seed)
        before = attack.held
        made = by_schema(attack, asked.schemathesis, asked.count // 2, asked.seed) if asked.schemathesis else 0
        changed(attack, max(1, asked.count - made - 100), asked.seed + 1)
        end = time.monotonic() + SECONDS
        while attack.busy and time.monotonic() < end:
            time.sleep(0.5)
        after = attack.held
        if attack.busy:
            attack.violations.append(f"{attack.busy:g} requests are still there after {SECONDS:g} s")
        if after[0] > before[0] + GROWN_MB or after[1] > before[1] + GROWN_FILES:
            attack.violations.append(
                f"it holds {after[0]:.0f} MB, {after[1]} files; before {before[0]:.0f}, {before[1]}"
            )
        if httpx.get(f"{address}/health", timeout=SECONDS).json()["status"] != "ok":
            attack.violations.append("it is not well")
        process.terminate()
        if process.wait(SECONDS):
            attack.violations.append(f"it ended with {process.returncode}")
    told = ", ".join(f"{status}: {count}" for status, count in sorted(attack.statuses.items()))
    print(f"{made} by schemathesis, {sum(attack.statuses.values())} changed ({told})")
    print(f"memory {before[0]:.0f} → {after[0]:.0f} MB, open files {before[1]} → {after[1]}")
    print(f"{len(attack.violations)} violations", *attack.violations, sep="\n")
    sys.exit(bool(attack.violations))


if __name__ == "__main__":
    main()
