"""Attack readers, guided by what of them runs: ``python tests/attacks/guided.py``, or ``make attack-guided``.

atheris changes a sound file and keeps each change that reaches code no other reached, which the blind attack
(``run.py``) finds by luck alone. The contract is the same: read, or refused in one short line.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

TARGETS = {
    "config": ("config chatglm2", "config.json"),
    "config of experts": ("config glm4_moe", "config.json"),
    "index": ("index chatglm3", "model.safetensors.index.json"),
    "tokenizer.json": ("tokenizer.json", "tokenizer.json"),
    "tokenizer_config.json": ("tokenizer chatglm3", "tokenizer_config.json"),
    "SentencePiece": ("tokenizer chatglm2", "tokenizer.model"),
    "tiktoken": ("tokenizer glm4_remote", "tokenizer.model"),
    "manifest": ("inspect program", "manifest.json"),
    "engine": ("engine", "engine.json"),
    "ranges": ("ranges", "ranges.json"),
    "adapter": ("adapter lora_plain", "adapter_config.json"),
}
"""Reader, by its name among all readers, and which of its files is changed."""
ROOMS = ("artifacts", "checkpoints", "families", "model_folder", "spec", "tokenizers")
"""What is watched whether a reader imports it at once or later."""
MOST_BYTES = 1 << 20
"""Of a changed file: tokenizers of the tests have 200 kB."""
STRUCTURAL = 0.75
"""How many changes of JSON are those of the blind attack: another value, a key more or less."""
KEPT = ("crash-", "timeout-", "oom-", "leak-")
"""How files begin that hold an input which was a violation."""
FOUND = "it is a violation:"


def guide(target: str, seconds: int, seed: int, work: Path) -> None:
    """Attack one target until the time is over; never returns."""
    import atheris

    # Only what is imported within is watched, so nothing of it may be imported before.
    assert not any(name.startswith("glm_export.") for name in sys.modules)
    with atheris.instrument_imports(include=["glm_export"]):
        import glm_export
        from tests.attacks import mutate
        from tests.attacks.readers import readers
        from tests.attacks.run import BYTES, SECONDS, VIOLATION, read

        for found in walk_packages(glm_export.__path__, "glm_export."):
            if found.name.split(".")[1] in ROOMS:
                import_module(found.name)

    logging.disable()
    name, file = TARGETS[target]
    reader = readers(work)[name]
    folder, corpus = work / "input", work / "corpus"
    shutil.copytree(reader.sound, folder)
    corpus.mkdir()
    sound = (folder / file).read_bytes()
    (corpus / "sound").write_bytes(sound)

    def change(data: bytes, most: int, seed: int) -> bytes:
        chooser = Random(seed)
        # Bytes alone seldom make one JSON of another.
        if file.endswith(".json") and chooser.random() < STRUCTURAL:
            try:
                return mutate.damaged_json(data, chooser)[:most]
            except (ValueError, RecursionError):  # what was kept need be no JSON any more
                return mutate.damaged_json(sound, chooser)[:most]
        changed: bytes = atheris.Mutate(data, most)
        return changed

    def attack(data: bytes) -> None:
        (folder / file).write_bytes(data)
        told = read(reader, folder, Random(seed))
        if told.startswith(VIOLATION):
            raise AssertionError(told)

    limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={BYTES >> 20}", f"-max_total_time={seconds}"]
    # From the first input on as long as the sound one, and never shortened for its own sake: a piece of JSON is none.
    lengths = [f"-max_len={MOST_BYTES}", "-len_control=0", "-reduce_inputs=0"]
    options = [*limits, *lengths, f"-seed={seed}", f"-artifact_prefix={work}/", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], attack, custom_mutator=change)
    atheris.Fuzz()


def attacked(target: str, seconds: int, seed: int) -> tuple[int, str]:
    """How many inputs of a target were read, and what was violated; in a process of its own."""
    command = [sys.executable, __file__, "--only", target, "--seconds", str(seconds), "--seed", str(seed)]
    with tempfile.TemporaryDirectory(prefix="glm-export-guided-") as work:
        done: Any = subprocess.run(
            [*command, "--work", work], capture_output=True, text=True, errors="backslashreplace", check=False
        )
        counted = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        if done.returncode == 0:
            return int(counted[0]), ""
        kept = [path for path in (Path(work) / "made").iterdir() if path.name.startswith(KEPT)]
        for path in kept:
            shutil.copyfile(path, Path.cwd() / path.name)
        told = f"{FOUND} {[path.name for path in kept]}\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
        return int(counted[0]) if counted else 0, told


def main() -> int:
    """Every target in turn; prints counts and violations, and returns how many there were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=30, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=TARGETS, help="one target, in this process where --work is given")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        guide(given.only, given.seconds, given.seed, given.work / "made")
    violations = 0
    for target in [given.only] if given.only else TARGETS:
        count, told = attacked(target, given.seconds, given.seed)
        violations += bool(told)
        print(f"{target:24} {count:8} inputs  {told or 'held'}", flush=True)
    return violations


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
