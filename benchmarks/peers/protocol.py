"""What the peers' scripts share: an environment each, one way to measure, one command line.

A peer is a script with five commands: ``install`` makes its environment, ``convert`` writes one model, ``forms`` lists
what it can be measured as, ``measure`` prints one JSON line, ``stay`` loads and measures whenever it is asked on
standard input. Converting and measuring run in the peer's own environment and are watched from outside, so that peak
memory is the peer's alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from watch import memory, tree

# Before a peer imports ONNX Runtime, which reports to its publisher otherwise; nothing measured here talks to anybody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

THREADS = 2
PROMPT_TOKENS, CONTEXT, NEW_TOKENS = 512, 128, 64
PREFILLS = 3
"""Prefills a process, of which the median counts; decoding is long enough to be measured once."""
SAMPLED_EVERY_S = 0.02
TORCH = "torch>=2.11,<2.14"

Generate = Callable[[list[int], int], list[float]]
"""Reads a prompt and writes greedily; returns, for each token written, the seconds from the start to its choice."""


@dataclass(frozen=True)
class Form:
    """One way to run a peer: bits of a weight, the converted model it reads, settings of the runtime."""

    bits: int
    model: str
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """What a script says of its peer.

    ``convert(checkpoint, out, model)`` and ``load(model_path, form)`` are called in the peer's environment.
    """

    name: str
    packages: tuple[str, ...]
    forms: Mapping[str, Form]
    convert: Callable[[Path, Path, str], None]
    load: Callable[[Path, Form], Generate]
    build_environment: Mapping[str, str] = field(default_factory=dict)

    def python(self, work: Path) -> Path:
        """The interpreter of its environment."""
        return work / "environments" / self.name / "bin" / "python"

    def model(self, work: Path, checkpoint: Path, model: str) -> Path:
        """Where a converted model lies."""
        return work / "models" / checkpoint.name / f"{self.name}-{model}"

    def install(self, work: Path) -> None:
        """Make the environment; nothing where it is there already."""
        folder = work / "environments" / self.name
        finished = folder / "installed"
        if finished.exists():
            return
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        environment = os.environ | self.build_environment | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        for package_set in self.package_sets():
            command: list[str | Path] = [self.python(work), "-m", "pip", "install", "--quiet", *package_set]
            subprocess.run(command, check=True, env=environment)
        finished.touch()

    def package_sets(self) -> list[list[str]]:
        """Packages to install together; ``--then`` parts those that need others to be there first."""
        sets: list[list[str]] = [[]]
        for package in self.packages:
            if package == "--then":
                sets.append([])
            else:
                sets[-1].append(package)
        return sets


def watched(command: list[str]) -> tuple[str, dict[str, float]]:
    """Run a command; its standard output, and wall time and peak memory of it and its children."""
    started, busy = time.perf_counter(), busy_seconds()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    anonymous = file = 0
    # A file, because a pipe that nobody reads meanwhile holds only so much.
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, stdout=printed)
        while process.poll() is None:
            sizes = [memory(pid) for pid in tree(process.pid)]
            anonymous = max(anonymous, sum(one for one, _ in sizes))
            file = max(file, sum(other for _, other in sizes))
            time.sleep(SAMPLED_EVERY_S)
        wall = time.perf_counter() - started
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nended with exit code {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    usage = {
        "wall_s": wall, "cpu_s": own, "peak_anonymous_gb": anonymous * 1024 / 1e9, "peak_file_gb": file * 1024 / 1e9,
        # What else ran here, in cores: a figure taken beside other work is worth little.
        "others_cores": max(0.0, busy_seconds() - busy - own) / wall,
    }  # fmt: skip
    return output, {name: round(value, 3) for name, value in usage.items()}


def busy_seconds() -> float:
    """Processor time that anything on this machine has used since it started, idling and waiting left out."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")


def prompts(vocab_size: int) -> Callable[[int], list[int]]:
    """Random prompts, others each time, for OpenVINO GenAI keeps what it has read."""
    generator = random.Random(0)
    return lambda count: [generator.randrange(3, vocab_size) for _ in range(count)]


def stay(load: Callable[[], Generate], vocab_size: int) -> None:
    """Load, say so, and then measure once for every line on standard input: ``read`` or ``write``."""
    prompt = prompts(vocab_size)
    started = time.perf_counter()
    generate = load()
    loaded = time.perf_counter() - started
    first = generate(prompt(16), 2)[-1]
    # The runtimes print what they like; a line of ours begins with a brace.
    print("\n" + json.dumps({"load_s": loaded, "second_token_s": loaded + first}), flush=True)
    for line in sys.stdin:
        if line.strip() == "read":
            answer = {"tokens_s": PROMPT_TOKENS / generate(prompt(PROMPT_TOKENS), 1)[0]}
        else:
            times = generate(prompt(CONTEXT), NEW_TOKENS + 1)
            answer = {"tokens_s": NEW_TOKENS / (times[-1] - times[0])}
        print("\n" + json.dumps(answer), flush=True)


def figures(generate: Generate, vocab_size: int) -> dict[str, float]:
    """Prefill and decode speed of a loaded model, after a warm-up of both."""
    prompt = prompts(vocab_size)
    generate(prompt(PROMPT_TOKENS), 1)
    generate(prompt(CONTEXT), 4)
    first = statistics.median(generate(prompt(PROMPT_TOKENS), 1)[0] for _ in range(PREFILLS))
    times = generate(prompt(CONTEXT), NEW_TOKENS + 1)
    if len(times) != NEW_TOKENS + 1:
        sys.exit(f"asked for {NEW_TOKENS + 1} tokens, {len(times)} came; the model must not stop early")
    steps = sorted(later - earlier for earlier, later in pairwise(times))
    return {
        "prefill_tokens_s": PROMPT_TOKENS / first,
        "time_to_first_token_s": first,
        "decode_tokens_s": NEW_TOKENS / (times[-1] - times[0]),
        "decode_p50_ms": 1000 * statistics.median(steps),
        # What counts where other work shares the machine.
        "decode_least_ms": 1000 * steps[0],
    }


def inside(peer: Peer, arguments: argparse.Namespace) -> None:
    """What runs in the peer's environment."""
    form = peer.forms[arguments.form]
    model = peer.model(arguments.work, arguments.checkpoint, form.model)
    if arguments.command == "convert":
        peer.convert(arguments.checkpoint, model, form.model)
        return
    vocab_size = json.loads((arguments.checkpoint / "config.json").read_text())["vocab_size"]
    if arguments.command == "stay":
        stay(partial(peer.load, model, form), vocab_size)
        return
    started = time.perf_counter()
    generate = peer.load(model, form)
    loaded = time.perf_counter() - started
    # The runtimes print what they like; the last line is ours.
    print("\n" + json.dumps({"load_s": loaded, **figures(generate, vocab_size)}), flush=True)


def main(peer: Peer) -> None:
    """The command line of a peer's script."""
    options = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    options.add_argument("command", choices=("install", "forms", "convert", "measure", "stay"))
    options.add_argument("--work", type=Path, default=Path("peers-work"))
    options.add_argument("--checkpoint", type=Path)
    options.add_argument("--form", choices=sorted(peer.forms))
    options.add_argument("--again", action="store_true", help="convert though the model is there")
    options.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.inside:
        inside(peer, arguments)
    elif arguments.command == "install":
        peer.install(arguments.work)
    elif arguments.command == "forms":
        print(json.dumps({name: form.bits for name, form in peer.forms.items()}))
    else:
        outside(peer, arguments)


def outside(peer: Peer, arguments: argparse.Namespace) -> None:
    """Convert or measure in the peer's environment, and say what it took; or become the peer that stays."""
    form = peer.forms[arguments.form]
    model = peer.model(arguments.work, arguments.checkpoint, form.model)
    if arguments.command == "convert" and model.exists() and not arguments.again:
        return
    model.parent.mkdir(parents=True, exist_ok=True)
    script = str(Path(sys.argv[0]).resolve())
    command = [
        str(peer.python(arguments.work)), "-I", script, arguments.command, "--inside", "--form", arguments.form,
        "--work", str(arguments.work), "--checkpoint", str(arguments.checkpoint),
    ]  # fmt: skip
    if arguments.command == "stay":
        # In this process's place: who asks talks to the peer itself.
        os.execv(command[0], command)
    output, usage = watched(command)
    measured = json.loads(output.splitlines()[-1]) if arguments.command == "measure" else {}
    size = sum(path.stat().st_size for path in ([model] if model.is_file() else model.rglob("*")) if path.is_file())
    facts = {"peer": peer.name, "form": arguments.form, "bits": form.bits, "size_gb": round(size / 1e9, 3)}
    print(json.dumps(facts | {name: round(value, 4) for name, value in measured.items()} | usage), flush=True)
