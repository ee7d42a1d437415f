"""What several parts do with a session: greedy tokens of known prompts, and the time decoding takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from record import Facts

from glm_export import api
from glm_export.embedded import DEMO, poems
from glm_export.evaluation.recall import Recall, blanked, fill_recall, recall
from glm_export.generation.generate import generate_ids
from glm_export.generation.infilling import blank_context, blank_tokenizer
from glm_export.inputs.prompts import Prompt
from glm_export.performance.measure import FIRST_PLAIN_ID
from glm_export.performance.report import BenchOptions
from glm_export.proof.check import CheckReport
from glm_export.proof.options import CheckOptions
from glm_export.sessions.session import Session

ANSWER = 24
"""Tokens of a greedy answer."""
HOST, DEVICE = "the host", "the device"
"""Who chooses tokens."""
NEVER_WRITTEN = "\uffff"
"""No character."""
CONTEXT, STEPS = BenchOptions().context, BenchOptions().new_tokens
"""Tokens read before decoding is timed, and steps timed."""


def greedy(
    session: Session, prompts: list[list[int]], tokens: int = ANSWER, *, by_host: bool = False
) -> list[list[int]]:
    """What a session writes after each prompt, all in one batch, up to the end of what it knows by heart.

    ``by_host``: the host chooses every token; otherwise the device does where the session can.
    """
    # A stop string is looked for by the host, in the text.
    stopping = api.stopping_for(session, tokens, (NEVER_WRITTEN,) if by_host else ())
    decode = session.tokenizer.decode if by_host else None
    return [row.ids for row in generate_ids(session, prompts, stopping=stopping, decode=decode)]


def known_prompts(session: Session, model: str, count: int = 4) -> list[list[int]]:
    """Beginnings an embedded model knows by heart: first lines, or for the blank-filling one poems with a blank."""
    chosen = [poem for poem in poems() if 2 <= len(poem.lines) <= 8][:count]
    if model == DEMO:
        return [session.tokenizer.encode(poem.lines[0]) for poem in chosen]
    tokenizer = blank_tokenizer(session)
    return [[*blank_context(tokenizer, blanked(poem)[0]), tokenizer.sop_id] for poem in chosen]


def long_prompt(session: Session, tokens: int) -> list[int]:
    """Of the reciting model, more tokens than so many: a whole poem but for its last line."""
    found = (session.tokenizer.encode("\n".join(poem.lines[:-1])) for poem in poems() if len(poem.lines) > 2)
    return next(ids for ids in found if len(ids) > tokens)


def recalled(session: Session, model: str) -> Recall:
    """Lines recited, or blanks filled, exactly."""
    return (recall if model == DEMO else fill_recall)(session, poems())


def checked(candidate: Path, against: Path | str, reference_dtype: str = "float32") -> Facts:
    """``glm-export check``: parity of single calls, and greedy tokens."""
    return report_facts(api.check(candidate, against, CheckOptions(reference_dtype=reference_dtype)))


def report_facts(report: CheckReport) -> Facts:
    """What matters of a check: the smallest tolerance that would have passed, and the worst output."""
    runs = (report.parity, *report.others)
    worst = max(
        (output for run in runs for output in run.outputs),
        key=lambda output: output.required_tolerance / output.tolerance,
    )
    return {
        "passed": report.passed, "needed": worst.required_tolerance, "tolerance": worst.tolerance,
        "worst": f"{worst.case}, {worst.output}", "runners": [run.candidate for run in runs],
        "greedy_equal": report.greedy_equal, "greedy_total": report.greedy_total,
    }  # fmt: skip


def timed_decode(session: Session, batch: int = 1) -> tuple[float, list[list[int]]]:
    """Seconds of :data:`STEPS` greedy steps behind a random prompt, and the tokens; the second of two rounds counts.

    The first settles shapes and captures what is to be captured.
    """
    config, seconds, chosen = session.config, 0.0, []
    ids = np.random.default_rng(0).integers(min(FIRST_PLAIN_ID, config.vocab_size - 1), config.vocab_size, CONTEXT)
    for _ in range(2):
        # Which ids a prefix family's context holds changes no timing, as in glm-export bench.
        prompt = Prompt(ids=tuple(ids.tolist()), context_length=CONTEXT - 1 if config.prefix_mask else 0)
        feeds = session.feeds([prompt] * batch)
        last_position = session.last_position(feeds)
        following = feeds.last_logits(session.prefill(feeds)).argmax(axis=-1).tolist()
        chosen, started = [following], time.perf_counter()
        for _ in range(STEPS):
            feeds = feeds.next_step(following, last_position)
            following = feeds.last_logits(session.decode(feeds)).argmax(axis=-1).tolist()
            chosen.append(following)
        seconds = time.perf_counter() - started
    return seconds, chosen


def in_turn(open_session: Callable[[bool], AbstractContextManager[Session]], model: str) -> Facts:
    """Two prompts, and the first again, one after the other in one session: with a CUDA graph as without.

    A step that was captured for one prompt must not go on reading its cache for the next. Steps whose tokens the host
    chooses and those of the loop on the device are captured apart, so both are tried, where the session has both.
    """
    ids: dict[tuple[bool, str], list[list[list[int]]]] = {}
    for graph in (False, True):
        with open_session(graph) as session:
            first, second, *_ = known_prompts(session, model)
            for chooser in (HOST, DEVICE) if session.chooses_tokens else (HOST,):
                ids[graph, chooser] = [
                    greedy(session, [prompt], by_host=chooser == HOST) for prompt in (first, second, first)
                ]
    expected = ids[False, HOST]
    found = {chooser: one for (graph, chooser), one in ids.items() if graph}
    told = {
        chooser: ", ".join(
            "the same" if one == other else "other tokens" for one, other in zip(these, expected, strict=True)
        )
        for chooser, these in found.items()
    }  # fmt: skip
    facts: Facts = {
        "passed": all(these == expected for these in found.values()) and expected[0] != expected[1],
        "found": "; ".join(f"with the graph, chosen by {chooser}: {said}" for chooser, said in told.items()),
    }
    return facts if facts["passed"] else facts | {"means": "a captured step answers for an earlier prompt"}


def graph_facts(seconds: dict[bool, float], ids: dict[bool, list[list[int]]]) -> Facts:
    """Decoding with a CUDA graph beside decoding without: the same tokens are expected; seconds are told."""
    return {
        "passed": ids[True] == ids[False], "seconds_with_graph": seconds[True], "seconds_without_graph": seconds[False],
        "found": f"{seconds[False] / seconds[True]:.2f} times as fast with the graph",
    }  # fmt: skip
