"""Greedy text alone and in company: how often another token is written, and how near the two were.

    python benchmarks/serving/flips.py MODEL [MODEL…] --requests 400

Each request is written alone first, in calls of its own. Then all of them come at random to an engine that reads
prompts in chunks beside decoding rows, begins with what others have read, and lets the important take the rows of
others. Where a text differs, the first token that does is a flip; its gap is that between both tokens' log-
probabilities, alone. Ends with 1 where a gap is above --gap.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass, field

from glm_export import api
from glm_export.inputs.prompts import Prompt
from glm_export.serving.engine import Engine
from glm_export.serving.request import Event, Request, TokenLogprobs
from glm_export.serving.scheduler import SchedulerOptions
from glm_export.sessions.session import Session

ALONE = SchedulerOptions(max_rows=1, exact=True)
COMPANY = SchedulerOptions(max_rows=16, chunk_tokens=16, step_tokens=48)
TOP = 20


@dataclass
class Text:
    """What was written, and what else could have been."""

    tokens: list[int] = field(default_factory=list)
    told: list[TokenLogprobs] = field(default_factory=list)


def requests_of(session: Session, count: int, new_tokens: int) -> list[Request]:
    """Random prompts; half of them begin as another does."""
    draw, made = random.Random(0), []
    size, longest = session.config.vocab_size, session.config.text_positions - new_tokens - 8
    begun = [[draw.randrange(3, size) for _ in range(min(64, longest // 2))] for _ in range(8)]
    for number in range(count):
        shared = draw.choice(begun)[: draw.randrange(8, 64)] if draw.random() < 0.5 else []
        own = [draw.randrange(3, size) for _ in range(draw.randrange(1, max(2, min(96, longest - len(shared)))))]
        prompt = Prompt(ids=(*shared, *own))
        priority = draw.randrange(3)
        made.append(
            Request(
                key=str(number), prompt=prompt, max_new_tokens=new_tokens, priority=priority, top_logprobs=TOP,
            )
        )  # fmt: skip
    return made


def taken(texts: dict[str, Text], events: list[Event]) -> None:
    for event in events:
        if event.error is not None:
            raise event.error
        if event.token is not None:
            text = texts.setdefault(event.key, Text())
            text.tokens.append(event.token)
            assert event.logprobs is not None
            text.told.append(event.logprobs)


def written(session: Session, requests: list[Request], options: SchedulerOptions, arriving: float) -> dict[str, Text]:
    """All requests, of which some come before each step."""
    engine = Engine(session, options, prefix_bytes=0 if options.exact else 64 << 20)
    draw, left, texts = random.Random(1), list(requests), dict[str, Text]()
    while left or not engine.idle:
        while left and (engine.idle or draw.random() < arriving):
            engine.submit(left.pop(0))
        taken(texts, engine.step())
    if not options.exact:
        print(f"  {engine.preemptions} rows made way for others", file=sys.stderr)
    return texts


def gaps(alone: dict[str, Text], company: dict[str, Text]) -> list[float]:
    """Of each flip."""
    found = []
    for key, text in alone.items():
        other = company[key].tokens
        differs = next((at for at, pair in enumerate(zip(text.tokens, other, strict=True)) if len(set(pair)) > 1), None)
        if differs is not None:
            told = text.told[differs]
            found.append(told.logprob - dict(told.top).get(other[differs], float("-inf")))
    return found


def main() -> None:
    """Print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--gap", type=float, default=1e-4)
    asked = parser.parse_args()
    worst = 0.0
    print("| model | requests | tokens | flips | largest gap |\n|---|---|---|---|---|")
    for model in asked.models:
        with api.load_session(model) as session:
            requests = requests_of(session, asked.requests, asked.new_tokens)
            alone = written(session, requests, ALONE, 1.0)
            company = written(session, requests, COMPANY, 0.7)
        found = gaps(alone, company)
        tokens = sum(len(text.tokens) for text in alone.values())
        print(f"| {model} | {len(requests)} | {tokens} | {len(found)} | {max(found, default=0.0):.1e} |", flush=True)
        worst = max(worst, *found, 0.0)
    sys.exit(worst > asked.gap)


if __name__ == "__main__":
    main()
