"""The verb ``batch``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import rich_click as click
from rich.markup import escape

from glm_export.cluster.options import WorkerOptions
from glm_export.serving.options import ServeOptions
from glm_export.terminal.console import CLUSTER, FOLDER, MESSAGES, MODEL, flags, json_option, picked, show_json
from glm_export.terminal.frame.saying import progress
from glm_export.terminal.frame.tables import counted

ENGINE = (
    "max_batch",
    "chunk_tokens",
    "exact",
    "speculate",
    "prefix_megabytes",
    "max_body_megabytes",
    "allow_special_tokens",
    "threads",
    "no_cache",
)


@click.command()
@click.argument("model", type=MODEL)
@click.option("--input", "requests", type=FOLDER, required=True, help="Requests, a line of JSON each.")
@click.option("--output", "answers", type=FOLDER, required=True, help="Answers; those that are there are kept.")
@flags(ServeOptions, *ENGINE)
@flags(WorkerOptions, panel=CLUSTER)
@json_option("Print how many were answered as JSON.")
def batch(model: str, requests: Path, answers: Path, as_json: bool, **options: Any) -> None:
    """Answer a file of requests with MODEL, in OpenAI's batch format; run again, it goes on where it stopped.

    Exits with 1 where an answer is an error.
    """
    from glm_export.serving.batch import answer_batch, by_engine

    asked = WorkerOptions(**picked(WorkerOptions, options))
    made = ServeOptions(**options)
    answering = by_engine(model, made)
    if asked.ray:
        from glm_export.serving.ray.batch import by_workers

        answering = by_workers(model, made, asked)
    with progress() as bars:
        report = answer_batch(answering, requests, answers, made, bars)
    before = f", {report.before:,} of them before" if report.before else ""
    failed = f"; {report.failed:,} of the answers are errors" if report.failed else ""
    MESSAGES.print(
        f"{counted(report.lines, 'request')} answered in {escape(str(answers))}{before}{failed}", soft_wrap=True
    )
    if as_json:
        show_json(asdict(report) | {"output": answers})
    if report.failed:
        raise SystemExit(1)
