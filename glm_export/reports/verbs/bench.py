"""What ``bench`` measured: speed, memory and the time to the first token, beside what the machine allows."""

from __future__ import annotations

from glm_export.performance.report import BenchReport
from glm_export.reports.records import Bars, Claim, Column, Fact, Report, Section, Table, figure, size
from glm_export.reports.run import Run, Subject

ABOUT = (
    "Nothing is judged here: a speed is measured, and the floor of a step is what no program that reads its weights "
    "from memory can go below on this machine. Speeds are medians over the rounds."
)


def bench_report(report: BenchReport, subject: Subject, run: Run) -> Report:
    """The findings of one ``bench``.

    Args:
        report: what was measured.
        subject: what was examined.
        run: on what.
    """
    share = "" if report.share_of_floor is None else f", {report.share_of_floor:.0%} of what reading memory allows"
    written_as = " ".join(filter(None, (report.runtime, report.dialect, report.dtype)))
    return Report(
        verb="bench",
        subject=subject.name,
        passed=None,
        about=(ABOUT,),
        sentence=f"{figure(report.decode_tokens_s)} tokens a second{share}: {written_as}, batch "
        f"{report.options.batch}.",
        claims=tuple(_claims(report)),
        sections=(_speed(report), _memory(report)),
        command=run.command,
        signature=subject.signature,
        environment=(*subject.facts, *_asked(report), *run.facts()),
        hashes=subject.hashes,
        measured=report.to_json(),
    )


def _claims(report: BenchReport) -> list[Claim]:
    options = report.options
    claims = [
        Claim(
            name="decoding",
            said=f"{figure(report.decode_tokens_s)} tokens/s",
            measured=report.decode_tokens_s,
            definition=f"{options.new_tokens} tokens behind {options.context}, batch {options.batch}.",
        ),
        Claim(
            name="reading a prompt",
            said=f"{figure(report.prefill_tokens_s)} tokens/s",
            measured=report.prefill_tokens_s,
            definition=f"A prompt of {options.prompt_tokens} tokens, batch {options.batch}.",
        ),
        Claim(
            name="time to the first token",
            said=f"{figure(1000 * report.first_token_s)} ms",
            measured=report.first_token_s,
            definition="That prompt read, and a token chosen.",
        ),
    ]
    if report.share_of_floor is not None:
        claims.append(
            Claim(
                name="of the machine's floor",
                said=f"{report.share_of_floor:.0%}",
                measured=report.share_of_floor,
                definition="Decoding speed over that of steps that take no longer than reading weights and cache once; "
                "100 % is nothing but reading memory.",
            )
        )
    if report.peak_anonymous_bytes is not None:
        claims.append(
            Claim(
                name="peak memory",
                said=size(report.peak_anonymous_bytes),
                measured=float(report.peak_anonymous_bytes),
                definition="Anonymous memory, which the machine must have; pages of files come on top.",
            )
        )
    return claims


def _speed(report: BenchReport) -> Section:
    steps = [("p50", report.step_p50_ms), ("p90", report.step_p90_ms), ("p99", report.step_p99_ms)]
    floor = report.floor_ms
    read = size(report.step_weight_bytes + report.step_cache_bytes)
    facts = [
        Fact(name="read in a step", value=read, definition="Weights, and keys and values, of one decode step."),
        Fact(
            name="memory is read at",
            value=f"{size(report.bandwidth_bytes_s)}/s" if report.bandwidth_bytes_s else "unknown",
            definition="Measured beside the model, by reading with all its threads.",
        ),
        Fact(name="floor of a step", value="unknown" if floor is None else f"{floor:.2f} ms"),
    ]
    bars = Bars(
        title="Time of a step",
        value_name="milliseconds",
        definition="Of all rounds' decode steps, so many in a hundred took no longer: half (p50), 90 (p90), 99 (p99).",
        alt=f"Half of the steps take {steps[0][1]:.2f} ms or less, 99 % {steps[2][1]:.2f}; the floor is "
        f"{'unknown' if floor is None else f'{floor:.2f}'}.",
        names=tuple(name for name, _ in steps),
        values=tuple(value for _, value in steps),
        mark=floor,
        mark_name="the machine's floor",
        table=Table(
            title="The numbers behind it: time of a step",
            folded=True,
            columns=(Column(name="percentile", numeric=False), Column(name="ms")),
            rows=tuple(steps),
        ),
    )
    return Section(key="speed", title="Speed", facts=tuple(facts), items=(bars,))


def _memory(report: BenchReport) -> Section:
    held = [
        ("before the model", report.libraries_anonymous_bytes, "libraries alone, part of the peak"),
        ("peak, anonymous", report.peak_anonymous_bytes, "what the machine must have"),
        ("peak, of files", report.peak_file_bytes, "pages that can be read again, mapped weights among them"),
        ("device, in use", report.device_memory_bytes, "on the GPU, by all"),
    ]
    known = [(name, value, told) for name, value, told in held if value is not None]
    if not known:
        return Section(key="memory", title="Memory", text=("This system does not tell what memory a process holds.",))
    table = Table(
        title="The numbers behind it: memory",
        folded=True,
        columns=(Column(name="memory", numeric=False), Column(name="bytes"), Column(name="what it is", numeric=False)),
        rows=tuple(known),
    )
    bars = Bars(
        title="Memory held",
        value_name="megabytes",
        definition="Sampled while the model ran in a process of its own.",
        alt=", ".join(f"{name} {size(value)}" for name, value, _ in known) + ".",
        names=tuple(name for name, *_ in known),
        values=tuple(value / 1e6 for _, value, _ in known),
        table=table,
    )
    facts = (Fact(name="to load", value=f"{report.load_s:.2f} s", definition="Until the first call can be made."),)
    return Section(key="memory", title="Memory and loading", facts=facts, items=(bars,))


def _asked(report: BenchReport) -> list[Fact]:
    options = report.options
    said = f"{options.rounds} rounds, {options.threads} threads, batch {options.batch}, on {report.device}"
    return [Fact(name="measured in", value=said)]
