"""Text to text over any session: a text goes on, whole or as it is written; a conversation is answered."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeGuard, overload

from glm_export.errors import InputError, shown
from glm_export.generation.drafted import draft_options
from glm_export.generation.drafts import DraftOptions
from glm_export.generation.generate import generate_ids, generate_steps
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping, TextStream, cut_at_stop, stops_of
from glm_export.sessions.session import Session
from glm_export.tokenizers import ends_in_thought, stop_ids
from glm_export.tokenizers.chat.messages import Message, Tools
from glm_export.tokenizers.chat.prompt import Options

TextOrIds = str | Sequence[int]
"""A text, or the ids of its tokens as the session's tokenizer has them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step wrote.

    ``text``: what became certain with it; a character of several tokens comes whole, and what may become a stop string
    is held back. ``ids``: its tokens, none with the last piece of a text that a stop id ended. ``finish_reason``: stop,
    length or context with the last piece, empty before.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str = ""


def is_ids(prompt: object) -> TypeGuard[Sequence[int]]:
    """Whether a prompt is token ids, at least one, and no text."""
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes) and bool(prompt)
    return listed and all(isinstance(token, Integral) and not isinstance(token, bool) for token in prompt)  # type: ignore[attr-defined]


def prompt_ids(session: Session, prompt: TextOrIds) -> list[int]:
    """Ids a session reads: a text's with what its family puts around it, or those that are given, as they are.

    Raises:
        InputError: it is neither.
    """
    if isinstance(prompt, str):
        return session.encode(prompt)
    if not is_ids(prompt):
        raise InputError(f"a prompt is a text, or its token ids; found {shown(prompt)}")
    return [int(token) for token in prompt]


def stream(
    session: Session,
    prompt: TextOrIds,
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    stop_strings: Sequence[str] = (),
    speculate: bool = False,
) -> Generator[Piece, None, None]:
    """Continue a text, and hand out what is written as it comes.

    The session is the stream's until it has ended or is closed (a ``for`` that is left closes it).

    >>> from glm_export import load_session, stream
    >>> with load_session("demo") as session:
    ...     for piece in stream(session, "床前明月光，", max_new_tokens=6):
    ...         print(piece.text, end="|")
    疑|是|地|上|霜|。|

    A conversation: ``stream(session, session.tokenizer.chat([{"role": "user", "content": "你好"}]))``.

    Args:
        session: from :func:`load_session`.
        prompt: a text, or token ids; those of a conversation are ``session.tokenizer.chat(messages)``.
        max_new_tokens: at most so many.
        sampling: greedy when absent.
        stop_strings: end the text, and are cut off.
        speculate: as :func:`generate` has it; a piece may have several tokens then.

    Yields:
        One piece a step; the texts of all of them are what :func:`generate` gives.

    Raises:
        InputError: at the first piece, as :func:`generate`.
        SessionBusyError: the session has another user.
        NonFiniteError: the model computes no numbers; pieces before it were handed out.
    """
    stopping = stopping_for(session, max_new_tokens, stop_strings)
    text, told = TextStream(session.tokenizer.detokenizer(), stopping.stop_strings), 0
    steps = generate_steps(
        session,
        [prompt_ids(session, prompt)],
        sampling=sampling,
        decode=session.tokenizer.decode,
        stopping=stopping,
        drafts=drafts_of(session, speculate),
    )
    with closing(steps):
        for (row,) in steps:
            new, told = tuple(row.ids[told:]), len(row.ids)
            written = text.feed(new) + (text.finish() if row.finish_reason else "")
            yield Piece(text=written, ids=new, finish_reason=row.finish_reason)


@overload
def generate(
    session: Session,
    prompt: str | list[int] | tuple[int, ...],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    stop_strings: Sequence[str] = ...,
    speculate: bool = ...,
) -> str: ...
@overload
def generate(
    session: Session,
    prompt: list[str] | list[list[int]] | list[TextOrIds],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    stop_strings: Sequence[str] = ...,
    speculate: bool = ...,
) -> list[str]: ...
def generate(
    session: Session,
    prompt: TextOrIds | list[str] | list[list[int]] | list[TextOrIds],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    stop_strings: Sequence[str] = (),
    speculate: bool = False,
) -> str | list[str]:
    """Continue a text, or several together.

    >>> from glm_export import Sampling, generate, load_session
    >>> with load_session("demo") as session:
    ...     generate(session, ["床前明月光，", "千山鸟飞绝，"], max_new_tokens=6)
    ...     generate(session, "春眠不觉晓，", max_new_tokens=6, sampling=Sampling(temperature=0.7, seed=1))
    ['疑是地上霜。', '万径人踪灭。']
    '处处闻啼鸟。'

    Args:
        session: from :func:`load_session`.
        prompt: one text or several; token ids may stand in the place of a text.
        max_new_tokens: at most this many tokens for each.
        sampling: greedy when absent.
        stop_strings: end a text, and are cut off.
        speculate: guess what a text goes on with out of what it says already (:mod:`generation.drafts`).

    Returns:
        What the model wrote after each prompt.

    Raises:
        InputError: a prompt that is no text, empty or too long, or an option no text can be written with.
        SessionBusyError: the session has another user.
        NonFiniteError: the model computes no numbers.
    """
    alone = isinstance(prompt, str) or is_ids(prompt)
    texts: Sequence[Any] = [prompt] if alone else prompt
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) or is_ids(text) for text in texts):
        raise InputError(f"a prompt is a text, its token ids, or a list of them; found {shown(prompt)}")
    tokenizer = session.tokenizer
    stopping = stopping_for(session, max_new_tokens, stop_strings)
    ids, drafts = [prompt_ids(session, text) for text in texts], drafts_of(session, speculate)
    rows = generate_ids(session, ids, sampling=sampling, decode=tokenizer.decode, stopping=stopping, drafts=drafts)
    results = [cut_at_stop(tokenizer.decode(row.ids), stopping.stop_strings) for row in rows]
    return results[0] if alone else results


def chat(
    session: Session,
    messages: list[Message],
    *,
    tools: Tools | None = None,
    documents: Tools | None = None,
    options: Options | None = None,
    max_new_tokens: int = 512,
    sampling: Sampling | None = None,
    speculate: bool = False,
) -> str:
    """The model's reply to a conversation, by the folder's chat template or in the prompt format of its family.

    >>> from glm_export import chat, load_session
    >>> with load_session("demo") as session:
    ...     print(chat(session, [{"role": "user", "content": "千山鸟飞绝，万径人踪灭。"}]))
    孤舟蓑笠翁，独钓寒江雪。

    Args:
        session: from :func:`load_session`.
        messages: the turns.
        tools: functions the model may call, as the OpenAI API has them.
        documents: objects with title and text, for templates that read them.
        options: what else the template reads, by name: ``enable_thinking`` of GLM-4.5.
        max_new_tokens: at most this many tokens.
        sampling: greedy when absent.
        speculate: as :func:`generate` has it.

    Raises:
        InputError: the format cannot express the conversation, or it exceeds the context.
    """
    prompt = session.tokenizer.chat(messages, tools=tools, documents=documents, options=options)
    return session.tokenizer.decode(_reply(session, prompt, max_new_tokens, sampling, speculate)).strip()


def chat_message(
    session: Session,
    messages: list[Message],
    *,
    tools: Tools | None = None,
    documents: Tools | None = None,
    options: Options | None = None,
    max_new_tokens: int = 512,
    sampling: Sampling | None = None,
    speculate: bool = False,
) -> Message:
    """As :func:`chat`, the reply as a message: its text, the tools it calls, what was thought before.

    It can stand in the conversation as it is, followed by the tools' answers. Raises as that does.
    """
    prompt = session.tokenizer.chat(messages, tools=tools, documents=documents, options=options)
    ids = _reply(session, prompt, max_new_tokens, sampling, speculate)
    return session.tokenizer.parse_reply(ids, tools, thinking=ends_in_thought(session.tokenizer, prompt))


def _reply(
    session: Session, prompt: list[int], max_new_tokens: int, sampling: Sampling | None, speculate: bool
) -> list[int]:
    stopping, drafts = stopping_for(session, max_new_tokens), drafts_of(session, speculate)
    (row,) = generate_ids(session, [prompt], sampling=sampling, stopping=stopping, drafts=drafts)
    return row.ids


def drafts_of(session: Session, speculate: bool) -> DraftOptions | None:
    """How a session's rows guess, where they are to.

    Raises:
        InputError: its program cannot judge guesses.
    """
    return draft_options(session) if speculate else None


def stopping_for(session: Session, max_new_tokens: int, stop_strings: Sequence[str] = ()) -> Stopping:
    """Stop at every id the config and the prompt format name.

    Raises:
        InputError: nothing would be written, or a stop string is empty or no text.
    """
    return Stopping(
        max_new_tokens=max_new_tokens,
        stop_ids=frozenset(stop_ids(session.config, session.tokenizer)),
        stop_strings=stops_of(stop_strings),
    )
