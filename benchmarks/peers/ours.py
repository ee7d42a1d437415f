"""glm-export itself, measured with ``glm-export bench``, or staying as a session of the library.

python benchmarks/peers/ours.py convert --work DIR --checkpoint CKPT --form onnx
python benchmarks/peers/ours.py measure --work DIR --checkpoint CKPT --form onnx
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from protocol import CONTEXT, NEW_TOKENS, PREFILLS, PROMPT_TOKENS, THREADS, Generate, stay, watched

PROGRAMS = {
    # name: bits of a weight, dialect, recipe, further options
    "onnx": (32, "onnx", None, ("--logits", "last")),
    "ort": (32, "ort", None, ()),
    "int8-token": (8, "ort", "int8-token", ()),
    "int8-dynamic": (8, "ort", "int8-dynamic", ()),
    "int8-weights": (8, "ort", "int8-weights", ()),
    "int4-weights": (4, "ort", "int4-weights", ()),
    "int4-block128": (4, "ort", "int4-weights", ("--block-size", "128")),
    "int4-block128-head4": (4, "ort", "int4-weights", ("--block-size", "128", "--head-bits", "4")),
    "int4-int8-prompt": (4, "ort", "int4-int8-prompt", ()),
}
GLM_EXPORT = Path(sys.executable).with_name("glm-export")


def convert(checkpoint: Path, out: Path, form: str) -> dict[str, Any]:
    """Export; wall time and peak memory of it."""
    _, dialect, recipe, options = PROGRAMS[form]
    command = [str(GLM_EXPORT), "export", str(checkpoint), "--out", str(out), "--dialect", dialect, *options]
    _, usage = watched([*command, *(["--recipe", recipe] if recipe else [])])
    return usage


def measure(out: Path) -> dict[str, Any]:
    """The figures of ``glm-export bench`` under the names the peers' scripts give them."""
    command = [str(GLM_EXPORT), "bench", str(out), "--json", "--threads", str(THREADS), "--rounds", str(PREFILLS)]
    command += ["--prompt-tokens", str(PROMPT_TOKENS), "--context", str(CONTEXT), "--new-tokens", str(NEW_TOKENS)]
    output, usage = watched(command)
    report = json.loads(output)
    return {
        "load_s": report["load_s"],
        # As with the peers: reading ends when a token is chosen.
        "prefill_tokens_s": PROMPT_TOKENS / report["first_token_s"],
        "time_to_first_token_s": report["first_token_s"],
        "decode_tokens_s": report["decode_tokens_s"],
        "decode_p50_ms": report["step_p50_ms"],
        "peak_anonymous_gb": report["peak_anonymous_bytes"] / 1e9,
        "peak_file_gb": report["peak_file_bytes"] / 1e9,
        "share_of_floor": report["share_of_floor"],
        "bandwidth_gb_s": report["bandwidth_bytes_s"] / 1e9,
        **{name: usage[name] for name in ("wall_s", "cpu_s", "others_cores")},
    }


def load(out: Path) -> Generate:
    """A session as the verbs have it: packed weights mapped from the cache, from the third load on."""
    from glm_export import api
    from glm_export.generation.generate import generate_steps
    from glm_export.generation.stopping import Stopping

    session = api.load_session(out, cache=True, threads=THREADS)

    def generate(ids: list[int], count: int) -> list[float]:
        started = time.perf_counter()
        steps = generate_steps(session, [ids], stopping=Stopping(max_new_tokens=count))
        return [time.perf_counter() - started for _ in steps]

    return generate


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("command", choices=("install", "forms", "convert", "measure", "stay"))
    options.add_argument("--work", type=Path, default=Path("peers-work"))
    options.add_argument("--checkpoint", type=Path)
    options.add_argument("--form", choices=sorted(PROGRAMS))
    options.add_argument("--again", action="store_true", help="convert though the model is there")
    arguments = options.parse_args()
    if arguments.command == "forms":
        print(json.dumps({name: program[0] for name, program in PROGRAMS.items()}))
    elif arguments.command != "install":
        out = arguments.work / "models" / arguments.checkpoint.name / f"ours-{arguments.form}"
        if arguments.command == "convert":
            if out.exists() and not arguments.again:
                return
            out.parent.mkdir(parents=True, exist_ok=True)
            figures = convert(arguments.checkpoint, out, arguments.form)
        elif arguments.command == "stay":
            values = json.loads((arguments.checkpoint / "config.json").read_text())
            stay(partial(load, out), values["vocab_size"])
            return
        else:
            figures = measure(out)
        size = sum(path.stat().st_size for path in out.iterdir())
        facts = {"peer": "ours", "form": arguments.form, "bits": PROGRAMS[arguments.form][0]}
        facts |= {"size_gb": round(size / 1e9, 3)}
        print(json.dumps(facts | {name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
