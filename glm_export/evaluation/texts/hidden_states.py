"""Hidden states of texts, and one vector for each text: what programs put out besides logits where they were asked to.

Shapes: N texts, S tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from glm_export.errors import InputError, shown
from glm_export.evaluation.logits import rows_at_once
from glm_export.generation.texts import TextOrIds, prompt_ids
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.sessions.session import Session, Tensors
from glm_export.spec.signature import LAST_HIDDEN_STATE, hidden_state_names, past_names

Pooling = Literal["mean", "last", "first"]
HiddenStates = dict[str, NDArray[np.float32]]
BATCH_TOKENS = 4096
"""Tokens of one call, padding among them, unless one text has more."""


@runtime_checkable
class TellsHiddenStates(Protocol):
    """A session that has them without an export: the checkpoint's."""

    def run_with_hidden_states(self, tensors: Tensors) -> Tensors:
        """As ``run``, and hidden states besides."""


def hidden_states(session: Session, text: TextOrIds) -> HiddenStates:
    """What the head reads of every token, and, of a program that puts them out, each layer.

    >>> from glm_export import export, hidden_states, load_session
    >>> program = export("demo", "poems-hidden", hidden_states="all", force=True)
    >>> with load_session("poems-hidden") as session:
    ...     states = hidden_states(session, "床前明月光")
    >>> list(states), states["last_hidden_state"].shape
    (['hidden_states.0', 'hidden_states.1', 'hidden_states.2', 'hidden_states.3', 'last_hidden_state'], (8, 192))

    Args:
        session: of a folder that was exported with ``hidden_states``, or of a checkpoint.
        text: a text, or token ids.

    Returns:
        float32 ``[S, H]`` by name: ``hidden_states.0`` (the embedding) and on, what layers read, and
        ``last_hidden_state`` behind the final norm; transformers' tuple ``hidden_states`` in its order.

    Raises:
        InputError: the session has none, or the text has no token or is too long.
        SessionBusyError: the session has another user.
    """
    (found,) = _states(session, [session.prompt(prompt_ids(session, text))])
    return found


def embed(
    session: Session, texts: Sequence[TextOrIds], *, pooling: Pooling = "mean", normalize: bool = False
) -> NDArray[np.float32]:
    """One vector for each text: its last hidden states, pooled over its tokens.

    These models were trained to write, not to embed: compare vectors of one model, and measure on your own task.

    >>> from glm_export import embed, load_session
    >>> with load_session("demo") as session:
    ...     moon, again, snow = embed(session, ["床前明月光", "举头望明月", "独钓寒江雪"], normalize=True)
    >>> bool(moon @ again > moon @ snow)
    True

    Args:
        session: of a folder that was exported with ``hidden_states``, or of a checkpoint.
        texts: texts, or token ids; those that stand together in a call do not change each other's vectors, as far as
            the recipe keeps rows apart.
        pooling: the mean over tokens, or the last or the first token's. Causal families: the last one alone has seen
            the whole text.
        normalize: scale vectors to length 1, so that their product is the cosine.

    Returns:
        float32 ``[N, H]``.

    Raises:
        InputError: the session has no hidden states, or a text has no token or is too long.
        SessionBusyError: the session has another user.
    """
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling {shown(pooling)} is unknown; known: {', '.join(get_args(Pooling))}")
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InputError(f"texts are a list of texts, found {shown(texts)}; put one in brackets")
    prompts = [session.prompt(prompt_ids(session, text)) for text in texts]
    vectors = np.zeros((len(prompts), session.config.hidden_size), np.float32)
    for vector_H, states in zip(vectors, _states(session, prompts), strict=True):
        last_SH = states[LAST_HIDDEN_STATE]
        mean_H = last_SH.mean(axis=0, dtype=np.float64)
        vector_H[:] = {"mean": mean_H, "last": last_SH[-1], "first": last_SH[0]}[pooling]
    if normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors


def _states(session: Session, prompts: Sequence[Prompt]) -> Iterator[HiddenStates]:
    told, run = session.signature.hidden_states, session.run
    if isinstance(session, TellsHiddenStates):
        told, run = hidden_state_names("all", session.config.num_layers), session.run_with_hidden_states
    if not told:
        raise InputError(
            f"{session.folder} puts out no hidden states; export it with --hidden-states last, or load the checkpoint"
        )
    for group in _groups(session, prompts):
        # In the canonical layout, whatever the program's is: rows stand at the right end of the columns.
        feeds = prefill_feeds(group, session.config)
        dtype = np.dtype(session.signature.input(past_names(0)[0]).dtype)
        kept = np.dtype(np.float32) if dtype.kind != "f" else dtype
        past = {name: array.astype(kept) for name, array in session.first_past(feeds.batch).items()}
        outputs = run({**feeds.named(), **past})
        for row, prompt in enumerate(group):
            yield {name: outputs[name][row, -len(prompt.ids) :].astype(np.float32) for name in told}


def _groups(session: Session, prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Neighbours whose tokens, padded to the longest of them, are few enough for one call."""
    most, group = rows_at_once(session), list[Prompt]()
    for prompt in prompts:
        longest = max(len(one.ids) for one in (*group, prompt))
        if group and (len(group) == most or longest * (len(group) + 1) > BATCH_TOKENS):
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group
