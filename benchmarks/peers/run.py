"""glm-export beside the peers on this machine's processor: speed, memory and loading, in one interleaved run.

    python benchmarks/peers/run.py medium-native --work /tmp/peers --rounds 3

Makes a random float16 checkpoint of the shape, an environment and converted models for every peer under ``--work``,
then measures every form of every peer in turn, ``--rounds`` times. Prints tables of medians, and of ours over the best
peer of the same bits; writes everything measured to ``--json``. A measurement waits until nothing else runs, and is
taken again where something else ran beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from protocol import busy_seconds
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HERE = Path(__file__).parent
SCRIPTS = ("ours", "llama_cpp", "openvino_genai", "onnxruntime_genai", "transformers_eager")
FIGURES = {
    "prefill_tokens_s": "pp512 tokens/s", "time_to_first_token_s": "first token s", "decode_tokens_s": "tg64 tokens/s",
    "load_s": "load s", "peak_anonymous_gb": "anonymous GB", "peak_file_gb": "file-backed GB", "size_gb": "size GB",
}  # fmt: skip
HIGHER_IS_BETTER = ("prefill_tokens_s", "decode_tokens_s")
QUIET_CORES = 0.1
Runs = dict[tuple[str, str], list[dict[str, Any]]]


def make_checkpoint(shape: str, work: Path) -> Path:
    """Random weights, and a tokenizer with a name for every id: exporters copy one, and servers write with it."""
    folder = work / shape
    if not (folder / "tokenizer.json").exists():
        subprocess.run([sys.executable, HERE.parent / "make_checkpoint.py", shape, folder], check=True)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        size = json.loads((folder / "config.json").read_text())["vocab_size"]
        names = [*alphabet, *(f"t{index}" for index in range(len(alphabet), size))]
        tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(names)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def call(script: str, command: str, *options: str | Path) -> str:
    """One command of a peer's script; its last line."""
    result = subprocess.run(
        [sys.executable, HERE / f"{script}.py", command, *options], stdout=subprocess.PIPE, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"{script}.py {command} {' '.join(map(str, options))} ended with exit code {result.returncode}")
    return result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""


def wait_until_quiet(patience_s: float) -> None:
    """Return when nothing else has run for two seconds, or when patience is over."""
    deadline = time.monotonic() + patience_s
    while True:
        before, started = busy_seconds(), time.monotonic()
        time.sleep(2)
        if (busy_seconds() - before) / (time.monotonic() - started) < QUIET_CORES or time.monotonic() > deadline:
            return


def measure(script: str, form: str, where: list[str | Path], patience_s: float) -> dict[str, Any]:
    """Of three tries at most, the one with the least beside it."""
    tries: list[dict[str, Any]] = []
    for _ in range(3):
        wait_until_quiet(patience_s)
        tries.append(json.loads(call(script, "measure", *where, "--form", form)))
        if tries[-1]["others_cores"] < QUIET_CORES:
            break
    return min(tries, key=lambda one: float(one["others_cores"]))


def median(runs: list[dict[str, Any]], figure: str) -> float:
    return statistics.median(float(run[figure]) for run in runs)


def table(runs: Runs) -> str:
    """Medians: one row a form, the fewest bits last."""
    lines = ["| bits | peer | " + " | ".join(FIGURES.values()) + " |", "|---" * (len(FIGURES) + 2) + "|"]
    for (script, form), measured in sorted(runs.items(), key=lambda item: -item[1][0]["bits"]):
        values = " | ".join(f"{median(measured, figure):.4g}" for figure in FIGURES)
        lines.append(f"| {measured[0]['bits']} | {script} {form} | {values} |")
    return "\n".join(lines)


def ratios(runs: Runs) -> str:
    """For every width and figure: our best form over the best peer's, above 1 where ours is the better."""
    lines = ["| bits | figure | ours | best peer | ours / best peer |", "|---|---|---|---|---|"]
    for bits in sorted({measured[0]["bits"] for measured in runs.values()}, reverse=True):
        for figure, label in FIGURES.items():
            higher = figure in HIGHER_IS_BETTER
            found = {key: median(one, figure) for key, one in runs.items() if one[0]["bits"] == bits}
            sides = [
                {key: value for key, value in found.items() if (key[0] == "ours") == is_ours}
                for is_ours in (True, False)
            ]
            if not all(sides):
                continue
            (own, own_value), (peer, peer_value) = (
                (max if higher else min)(side.items(), key=lambda item: item[1]) for side in sides
            )
            ratio = own_value / peer_value if higher else peer_value / own_value
            lines.append(
                f"| {bits} | {label} | {own_value:.4g} ({own[1]}) | {peer_value:.4g} ({' '.join(peer)}) | {ratio:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("shape")
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", nargs="+", metavar="PEER[:FORM]", help="some of " + ", ".join(SCRIPTS))
    options.add_argument("--json", type=Path, help="where to write every measurement; default: under --work")
    options.add_argument("--patience", type=float, default=600, help="seconds to wait for a quiet machine")
    arguments = options.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    checkpoint = make_checkpoint(arguments.shape, arguments.work)
    where: list[str | Path] = ["--work", arguments.work, "--checkpoint", checkpoint]
    chosen: list[tuple[str, str]] = []
    conversions: list[dict[str, Any]] = []
    wanted = set(arguments.only or SCRIPTS)
    for script in (one for one in SCRIPTS if any(name.split(":")[0] == one for name in wanted)):
        forms = [form for form in json.loads(call(script, "forms")) if {script, f"{script}:{form}"} & wanted]
        call(script, "install", "--work", arguments.work)
        for form in forms:
            line = call(script, "convert", *where, "--form", form)
            conversions += [json.loads(line)] if line else []
            chosen.append((script, form))
    runs: Runs = defaultdict(list)
    for number in range(arguments.rounds):
        for script, form in chosen:
            measured = measure(script, form, where, arguments.patience)
            print(f"round {number + 1}: {json.dumps(measured)}", file=sys.stderr, flush=True)
            runs[script, form].append(measured)
    print(table(runs), ratios(runs), sep="\n\n")
    worst = max(one["others_cores"] for measured in runs.values() for one in measured)
    print(f"\nBeside a measurement, other work took at most {worst:.2f} cores.")
    result = {"shape": arguments.shape, "conversions": conversions, "runs": [one for m in runs.values() for one in m]}
    (arguments.json or arguments.work / f"{arguments.shape}.json").write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
