"""What guesses gain: tokens a second with `--speculate` over those without, at the acceptance of real texts.

    python benchmarks/make_checkpoint.py medium DIR/medium
    glm-export export DIR/medium --out DIR/program --dialect ort --recipe int8-token --logits recent
    python benchmarks/sessions/speculation.py DIR/program [--rounds 5] [--tokens 400] [--columns]

Weights of this size are random here, so their own text would say nothing: a known answer is forced upon the model token
by token (teacher-forced replay), with and without guesses, in turn. Texts are made of what every machine with Python
has: an edit of a file of its standard library, an answer that quotes a page of our documents, and prose of which
nothing stands in the prompt. Tokens are those of a byte-level BPE trained on that library and these documents.
`--columns` prints instead what a step takes by its number of tokens, as a share of a step of one.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from glm_export.artifacts.program import load_program
from glm_export.generation.drafted import draft_options
from glm_export.generation.drafts import DraftOptions
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.sessions.onnxruntime.session import OrtSession
from glm_export.sessions.session import Logits

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(sysconfig.get_path("stdlib"))
CERTAIN = 1e6
VOCABULARY = 32000
COLUMNS = (1, 2, 3, 4, 6, 8, 12, 17)


@dataclass(frozen=True)
class Replayed:
    """A prompt and the answer to it, as ids."""

    name: str
    prompt: list[int]
    answer: list[int]


class Forced(OrtSession):
    """A session whose logits say a known text of one row, wherever it stands."""

    text: Sequence[int] = ()
    steps = 0

    def _decode(self, feeds: Feeds) -> Logits:
        logits = super()._decode(feeds)
        assert isinstance(feeds, RightPaddedFeeds)
        self.steps += 1
        force(logits[0], self.text, int(feeds.lengths[0]))
        return logits


def force(logits_SV: Logits, text: Sequence[int], read: int) -> None:
    """Make logits say a known text, in place; the last of them stand behind its first ``read`` tokens."""
    for column, logits_V in enumerate(logits_SV, read - len(logits_SV) + 1):
        if column < len(text):
            logits_V[text[column]] = CERTAIN


def bpe() -> Tokenizer:
    """Trained on the standard library and our documents; seconds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    files = [*sorted(LIBRARY.glob("*.py")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False)
    tokenizer.train([str(file) for file in files], trainer)
    return tokenizer


def quoting(page: str, prose: str) -> str:
    """An answer that quotes a page: its sentences between those of other prose."""
    quoted = [part for part in page.split("\n\n") if 150 < len(part) < 700]
    own = [part for part in prose.split("\n\n") if len(part) > 60]
    pairs = zip(own, quoted, strict=False)
    return "\n\n".join(f"{one[:200]}\n\nThe page says: {other[:300]}" for one, other in pairs)


def texts(most: int) -> Iterator[Replayed]:
    """The three kinds, answers of at most so many tokens."""
    tokenizer = bpe()
    code = (LIBRARY / "textwrap.py").read_text()[:6000]
    page = (ROOT / "docs" / "serving.md").read_text()
    prose = (ROOT / "docs" / "adr" / "0021-the-chosen-experts-in-ort.md").read_text()
    pairs = {
        "code edit": (f"Call the width columns in this file.\n\n{code}", re.sub(r"\bwidth\b", "columns", code)),
        "quotations": (page[:8000], quoting(page, prose)),
        "prose": ("Why are only the chosen experts computed?", prose),
    }
    for name, (prompt, answered) in pairs.items():
        yield Replayed(name, tokenizer.encode(prompt).ids, tokenizer.encode(answered).ids[:most])


def replay(session: Forced, text: Replayed, drafts: DraftOptions | None) -> tuple[float, int]:
    """Tokens a second behind the first, and steps they took."""
    session.text = [*text.prompt, *text.answer]
    stopping = Stopping(max_new_tokens=len(text.answer))
    first = Stopping(max_new_tokens=1)
    prompt = Prompt(ids=tuple(text.prompt))
    began = time.perf_counter()
    generate_ids(session, [prompt], stopping=first)
    reading, session.steps = time.perf_counter() - began, 0
    began = time.perf_counter()
    (row,) = generate_ids(session, [prompt], stopping=stopping, drafts=drafts)
    took = time.perf_counter() - began - reading
    assert row.ids == text.answer
    return (len(text.answer) - 1) / took, session.steps - 1


def columns(session: Forced, rounds: int) -> None:
    """Milliseconds of a step by its tokens, on a past of 512."""
    random = np.random.default_rng(0)
    size = session.config.vocab_size
    feeds = session.feeds([Prompt(ids=tuple(random.integers(0, size, 512).tolist()))])
    session.prefill(feeds)
    assert isinstance(feeds, RightPaddedFeeds)
    found: dict[int, list[float]] = {count: [] for count in COLUMNS}
    for _ in range(rounds * 4):
        for count in COLUMNS:
            following = feeds.next_tokens([random.integers(0, size, count).tolist()])
            began = time.perf_counter()
            session.decode(following)
            found[count].append(time.perf_counter() - began)
            feeds = session.truncate(following, 0, 512)
    least = {count: statistics.median(times) for count, times in found.items()}
    for count, took in least.items():
        share = (took / least[1] - 1) / (count - 1) if count > 1 else 0.0
        print(f"{count:3} tokens {took * 1000:7.1f} ms  {took / least[1]:.2f} x  {share:.3f} for each more")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=400, help="Of an answer at most.")
    parser.add_argument("--columns", action="store_true")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    with Forced(load_program(given.program), ["CPUExecutionProvider"], threads=given.threads) as session:
        if given.columns:
            columns(session, given.rounds)
            return
        options = draft_options(session)
        for text in texts(given.tokens):
            rates: dict[str, list[float]] = {"plain": [], "guessed": []}
            steps = {}
            for _ in range(given.rounds):
                for name, drafts in (("plain", None), ("guessed", options)):
                    rate, steps[name] = replay(session, text, drafts)
                    rates[name].append(rate)
            plain, guessed = (statistics.median(rates[name]) for name in rates)
            ratios = [one / other for one, other in zip(rates["guessed"], rates["plain"], strict=True)]
            print(
                f"{text.name:12} {len(text.prompt):5} + {len(text.answer)} tokens  plain {plain:6.1f} tokens/s  "
                f"guessed {guessed:6.1f}  {statistics.median(ratios):.2f} x  "
                f"{steps['plain']} and {steps['guessed']} steps"
            )


if __name__ == "__main__":
    main()
