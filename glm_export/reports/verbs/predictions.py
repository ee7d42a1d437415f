"""What was predicted: output by output, token by token, and the texts that both sides write."""

from __future__ import annotations

import math
from collections.abc import Sequence

from glm_export.proof.compare import OutputParity
from glm_export.proof.measures.greedy import GreedyText
from glm_export.proof.measures.tokens import TokenParity
from glm_export.reports.records import Column, Fact, Lines, Piece, Section, Series, Table, Texts, figure
from glm_export.spec.signature import LOGITS

WORST_TOKENS = 12
MOST_TEXTS = 6
WRITTEN = (
    "Greedy texts behind random prompts: what each side finds likeliest, token by token, going on from its own. Behind "
    "the first difference the two read different texts."
)


def outputs_section(outputs: Sequence[OutputParity]) -> Section:
    """The figures of every case's logits, and of the keys or values that are furthest off."""
    columns = (
        Column(name="case", numeric=False),
        Column(name="output", numeric=False),
        Column(name="needed", definition="The smallest tolerance that passes: the largest difference over the scale."),
        Column(name="max abs", definition="The largest difference, in the output's units."),
        Column(name="max rel", definition="The largest relative difference, where the reference is not tiny."),
        Column(name="scale", definition="The output's largest reference value."),
        Column(name="cosine", definition="Of the angle between both sides' values as vectors; 1: no angle."),
        Column(name="signal to noise, dB", definition="The reference's energy over the error's; 60: a thousandth."),
        Column(name="top-1", definition="Share of real tokens with the same likeliest next one; logits alone."),
    )
    # Logits, and the worst of each case's keys and values: all of them are in the JSON.
    shown = []
    for case in dict.fromkeys(output.case for output in outputs):
        caches = [output for output in outputs if output.case == case and output.output != LOGITS]
        shown += [output for output in outputs if output.case == case and output.output == LOGITS]
        shown += sorted(caches, key=lambda output: -output.required_tolerance)[:1]
    rows = tuple(
        (
            one.case,
            one.output,
            one.required_tolerance,
            one.max_abs,
            one.max_rel,
            one.scale,
            None if one.cosine is None else f"{one.cosine:.9f}",
            one.signal_to_noise,
            one.top1,
        )
        for one in shown
    )
    marked = frozenset(n for n, one in enumerate(shown) if not one.passed)
    told = "The logits of each case, and the keys or values furthest off; cosine, signal and top-1 without padding."
    table = Table(title="Outputs", columns=columns, rows=rows, definition=told, marked=marked)
    return Section(key="outputs", title="Output by output", items=(table,))


def predictions_section(tokens: Sequence[TokenParity]) -> Section | None:
    """KL over tokens, and the predictions that are furthest apart; None where there is none."""
    if not tokens:
        return None
    by_case: dict[str, list[tuple[int, TokenParity]]] = {}
    for number, token in enumerate(tokens):
        by_case.setdefault(token.case, []).append((number, token))
    same = sum(token.top1 for token in tokens)
    worst = max(tokens, key=lambda token: token.kl)
    mean = math.fsum(token.kl for token in tokens) / len(tokens)
    kl = Lines(
        title="KL over tokens",
        definition=(
            "Kullback-Leibler divergence of the candidate's prediction from the reference's behind each real token, in "
            "nats: 0 is the same prediction. Below 1e-13 it is rounding of the sum, and drawn there."
        ),
        alt=f"{figure(mean)} nats on average, {figure(worst.kl)} at most, behind position {worst.position} of row "
        f"{worst.row} in case {worst.case}.",
        series=tuple(
            Series(
                name=case, x=tuple(float(n) for n, _ in found), y=tuple(token.kl for _, token in found), connected=False
            )
            for case, found in by_case.items()
        ),
        x_name="tokens, case by case",
        y_name="nats",
        floor=1e-13,
        table=_token_table(tokens),
    )
    facts = (
        Fact(
            name="predictions compared",
            value=f"{len(tokens):,}",
            definition="Behind real tokens of all cases.",
        ),
        Fact(name="same likeliest token", value=f"{same:,} of {len(tokens):,}"),
        Fact(name="KL, mean", value=f"{figure(mean)} nats"),
        Fact(name="KL, largest", value=f"{figure(worst.kl)} nats"),
    )
    return Section(key="predictions", title="Prediction by prediction", facts=facts, items=(kl,))


def _token_table(tokens: Sequence[TokenParity]) -> Table:
    worst = sorted(tokens, key=lambda token: (token.top1, -token.kl))[:WORST_TOKENS]
    rows = tuple(
        (
            token.case,
            token.row,
            token.position,
            _named(token.text, token.token),
            token.kl,
            _named(token.expected_text, token.expected),
            _named(token.found_text, token.found),
            token.rank,
            token.reference_margin,
            token.candidate_margin,
        )
        for token in worst
    )
    return Table(
        title=f"The {len(worst)} predictions that are furthest apart",
        columns=(
            Column(name="case", numeric=False),
            Column(name="row"),
            Column(name="position", definition="Of the token in its row, counted from 0."),
            Column(name="behind", numeric=False, definition="The token read last; its id where it has no text."),
            Column(name="KL", definition="In nats."),
            Column(name="reference says", numeric=False, definition="The token it finds likeliest."),
            Column(name="candidate says", numeric=False),
            Column(name="rank", definition="Of the reference's token among the candidate's; 1 is the likeliest."),
            Column(name="its margin", definition="The reference's likeliest logit less its second."),
            Column(name="other's margin", definition="The same of the candidate."),
        ),
        rows=rows,
        marked=frozenset(n for n, token in enumerate(worst) if not token.top1),
        folded=True,
    )


def _named(text: str | None, number: int) -> str:
    return f"{text.strip()} #{number}" if text is not None and text.strip() else f"#{number}"


def texts_section(texts: Sequence[GreedyText], names: tuple[str, str]) -> Section | None:
    """Greedy texts beside each other, those that part first; None where none was written.

    Args:
        texts: of both sides.
        names: of the reference and the candidate.
    """
    if not texts:
        return None
    # A prompt's text in company and alone is mostly the same.
    alike: dict[tuple[tuple[int, ...], ...], list[GreedyText]] = {}
    for text in texts:
        alike.setdefault((text.prompt, text.candidate), []).append(text)
    shown = sorted(alike.values(), key=lambda group: group[0].parted is None)[:MOST_TEXTS]
    return Section(
        key="texts",
        title="Texts side by side",
        text=(WRITTEN,),
        items=tuple(_beside(group, names) for group in shown),
    )


def _beside(group: Sequence[GreedyText], names: tuple[str, str]) -> Texts:
    text = group[0]

    def pieces(ids: Sequence[int], texts: Sequence[str | None]) -> tuple[Piece, ...]:
        return tuple(Piece(text=said, number=number) for number, said in zip(ids, texts, strict=True))

    if text.parted is None:
        note = f"All {len(text.reference)} tokens are alike."
    elif not text.candidate:
        note = "The candidate gives no numbers to choose a token by."
    else:
        tie = " Rounding alone can turn that: it is no sign of a defect." if text.near_tie else ""
        note = (
            f"They part at token {text.parted + 1} of {len(text.reference)}. The reference prefers its own by "
            f"{figure(text.reference_margin)} there, the candidate its own by {figure(text.candidate_margin)}; "
            f"rounding can turn {figure(text.tie)}.{tie}"
        )
    return Texts(
        title=f"Behind a prompt of {len(text.prompt)} tokens, {' and '.join(one.how for one in group)}",
        definition="A margin is the likeliest token's logit less the second's.",
        prompt=text.prompt_text or " ".join(f"#{token}" for token in text.prompt),
        names=names,
        sides=(pieces(text.reference, text.reference_texts), pieces(text.candidate, text.candidate_texts)),
        parted=text.parted,
        note=note,
    )
