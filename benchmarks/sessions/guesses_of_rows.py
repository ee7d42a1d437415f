"""What guesses gain where several rows are written: an engine's tokens a second with and without, on real texts.

    python benchmarks/make_checkpoint.py medium DIR/medium
    glm-export export DIR/medium --out DIR/program --dialect ort --recipe int8-token --logits recent
    python benchmarks/sessions/guesses_of_rows.py DIR/program [--rows 1 2 4 8] [--rounds 3] [--tokens 200]

Answers are known and forced upon each row token by token, as in `speculation.py`, whose tokens these are: edits of
files of Python's standard library, documents that quote others, prose of which nothing stands in the prompt, and the
three mixed. Prompts are read before the clock starts; it stops when the last row has ended.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from speculation import LIBRARY, ROOT, Replayed, bpe, force, quoting
from tokenizers import Tokenizer

from glm_export.artifacts.program import load_program
from glm_export.inputs.prompts import Prompt
from glm_export.serving.batch_rows import LogitsByKey, OwnLengthRows
from glm_export.serving.engine import Engine
from glm_export.serving.request import Request
from glm_export.serving.scheduler import SchedulerOptions
from glm_export.sessions.onnxruntime.session import OrtSession

MODULES = ("textwrap", "shlex", "fnmatch", "bisect", "heapq", "csv", "copy", "string")


class ForcedRows(OwnLengthRows):
    """Rows whose logits say a known text each, by key."""

    def __init__(self, session: OrtSession, max_rows: int) -> None:
        super().__init__(session, max_rows)
        self.texts: dict[str, list[int]] = {}
        self.steps = 0

    def advance(self, tokens: Mapping[str, Sequence[int]], prompts: Mapping[str, Prompt]) -> LogitsByKey:
        found = super().advance(tokens, prompts)
        self.steps += 1
        for key, logits_SV in found.items():
            force(logits_SV, self.texts[key], int(self._feeds.lengths[self.keys.index(key)]))
        return found


def texts(tokens: int) -> dict[str, list[Replayed]]:
    """Eight of each kind, answers of so many tokens."""
    tokenizer = bpe()
    pages, records = (
        sorted((page.read_text() for page in folder.glob("*.md")), key=len, reverse=True)[:8]
        for folder in (ROOT / "docs", ROOT / "docs" / "adr")
    )
    kinds = {
        "code edits": [edit(LIBRARY / f"{module}.py", tokenizer, tokens) for module in MODULES],
        "quotations": [
            replayed(page[:8000], quoting(page, record), tokenizer, tokens)
            for page, record in zip(pages, records, strict=True)
        ],
        "prose": [replayed("What was decided, and why?", record, tokenizer, tokens) for record in records],
    }
    mixed = [kinds[kind][at] for at in range(3) for kind in kinds][:8]
    return {**kinds, "mixed": mixed}


def replayed(prompt: str, answer: str, tokenizer: Tokenizer, tokens: int) -> Replayed:
    ids = tokenizer.encode(answer).ids[:tokens]
    if len(ids) < tokens:
        sys.exit(f"an answer should have {tokens} tokens, found {len(ids)}; ask for fewer with --tokens")
    return Replayed("", tokenizer.encode(prompt).ids, ids)


def edit(file: Path, tokenizer: Tokenizer, tokens: int) -> Replayed:
    """Its most frequent long name is called otherwise."""
    code = file.read_text()[:4000]
    name = Counter(re.findall(r"\b[a-z_]{5,}\b", code)).most_common(1)[0][0]
    return replayed(
        f"Call {name} renamed in this file.\n\n{code}", re.sub(rf"\b{name}\b", "renamed", code), tokenizer, tokens
    )


def written(engine: Engine, given: Sequence[Replayed], guesses: bool) -> tuple[float, int]:
    """Tokens a second of all rows behind their first, and the steps they took."""
    rows = engine.rows
    assert isinstance(rows, ForcedRows)
    rows.texts = {str(at): [*text.prompt, *text.answer] for at, text in enumerate(given)}
    for at, text in enumerate(given):
        prompt = Prompt(ids=tuple(text.prompt))
        nothing = None if guesses else lambda _: ()
        engine.submit(Request(key=str(at), prompt=prompt, max_new_tokens=len(text.answer), drafts=nothing))
    answers: dict[str, list[int]] = {key: [] for key in rows.texts}
    # Each prompt is read but for what is kept of it; no row is far ahead of the last.
    while not all(answers.values()):
        took(engine, answers)
    before, rows.steps, began = sum(map(len, answers.values())), 0, time.perf_counter()
    while not engine.idle:
        took(engine, answers)
    seconds = time.perf_counter() - began
    assert [answers[str(at)] for at in range(len(given))] == [text.answer for text in given]
    return (sum(map(len, answers.values())) - before) / seconds, rows.steps


def took(engine: Engine, answers: dict[str, list[int]]) -> None:
    for event in engine.step():
        if event.error is not None:
            raise event.error
        if event.token is not None:
            answers[event.key].append(event.token)


def engines(program: Path, threads: int | None, rows: Sequence[int]) -> Iterator[tuple[int, Engine]]:
    """One after another, each with the session to itself; prompts are kept."""
    for count in rows:
        with OrtSession(load_program(program), ["CPUExecutionProvider"], threads=threads) as session:
            options = SchedulerOptions(max_rows=count, step_tokens=1024, chunk_tokens=512)
            engine = Engine(session, options, prefix_bytes=4 << 30, speculate=True)
            engine.rows = ForcedRows(session, count)
            yield count, engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200, help="Of an answer.")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    kinds = texts(given.tokens)
    for rows, engine in engines(given.program, given.threads, given.rows):
        for kind, all_of_it in kinds.items():
            chosen = all_of_it[:rows]
            written(engine, chosen, False)
            rates: dict[bool, list[float]] = {False: [], True: []}
            steps = {}
            for _ in range(given.rounds):
                for guesses in rates:
                    rate, steps[guesses] = written(engine, chosen, guesses)
                    rates[guesses].append(rate)
            plain, guessed = (statistics.median(rates[guesses]) for guesses in rates)
            ratio = statistics.median(one / other for one, other in zip(rates[True], rates[False], strict=True))
            print(
                f"{rows} rows  {kind:12} without {plain:6.1f} tokens/s  with {guessed:6.1f}  {ratio:.2f} x  "
                f"{steps[False]} and {steps[True]} steps",
                flush=True,
            )


if __name__ == "__main__":
    main()
