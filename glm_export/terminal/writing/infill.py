"""The verbs ``infill`` and ``score``, and the table of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rich_click as click
from rich.console import Console
from rich.markup import escape

from glm_export.generation.sampling import Sampling
from glm_export.terminal.console import MODEL, NO_CACHE, RESULTS, SAMPLING, SPECULATE, flags, json_option, show_json
from glm_export.terminal.frame.tables import Column, columns, show_table

if TYPE_CHECKING:
    from glm_export.generation.infilling import LabelScore


@click.command()
@click.argument("model", type=MODEL)
@click.option("--text", required=True, help="With one or more [MASK], [sMASK] or [gMASK].")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="For each blank.")
@flags(Sampling, panel=SAMPLING)
@SPECULATE
@NO_CACHE
@json_option("Print text and fills as JSON.")
def infill(
    model: str, text: str, max_new_tokens: int, speculate: bool, no_cache: bool, as_json: bool, **sampling: Any
) -> None:
    """Fill the blanks of a text with MODEL, a GLM or ChatGLM-6B."""
    from glm_export import api

    chosen = Sampling(**sampling)
    with api.load_session(model, cache=not no_cache) as session:
        result = api.infill(session, text, max_new_tokens=max_new_tokens, sampling=chosen, speculate=speculate)
    if as_json:
        show_json({"text": result.text, "fills": result.fills})
    else:
        click.echo(result.text)


@click.command()
@click.argument("model", type=MODEL)
@click.option("--text", required=True, help="What to judge.")
@click.option("--pattern", required=True, help='With {} for the text and one [MASK], as in "{}. It\'s really [MASK]."')
@click.option("--labels", required=True, help="Words for the blank, separated by commas.")
@click.option("--sum", "whole", is_flag=True, help="Rank by the whole label instead of a token of it.")
@NO_CACHE
@json_option()
def score(model: str, text: str, pattern: str, labels: str, whole: bool, no_cache: bool, as_json: bool) -> None:
    """Say which label fits the blank best, with MODEL, a GLM or ChatGLM-6B."""
    from glm_export import api

    words = [word.strip() for word in labels.split(",")]
    with api.load_session(model, cache=not no_cache) as session:
        scores = api.score(session, text, pattern=pattern, labels=words, normalize=not whole)
    if as_json:
        show_json(score_facts(scores))
    else:
        show_scores(RESULTS, scores)


def score_facts(scores: Sequence[LabelScore]) -> list[dict[str, Any]]:
    """Plain values, the likeliest label first."""
    return [asdict(score) | {"mean_log_probability": score.mean} for score in scores]


def show_scores(console: Console, scores: Sequence[LabelScore]) -> None:
    """One row a label, the likeliest first."""
    rows = [
        (escape(score.label), str(score.tokens), f"{score.log_probability:.3f}", f"{score.mean:.3f}")
        for score in scores
    ]
    show_table(console, [Column("label"), *columns("tokens", "log-probability", "a token", number=True)], rows)
