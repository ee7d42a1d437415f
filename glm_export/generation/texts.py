"""Text to text over any session: a text goes on, a conversation is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from glm_export.errors import InputError, shown
from glm_export.generation.drafted import draft_options
from glm_export.generation.drafts import DraftOptions
from glm_export.generation.generate import generate_ids
from glm_export.generation.sampling import Sampling
from glm_export.generation.stopping import Stopping, cut_at_stop, stops_of
from glm_export.sessions.session import Session
from glm_export.tokenizers import ends_in_thought, stop_ids
from glm_export.tokenizers.chat.messages import Message, Tools
from glm_export.tokenizers.chat.prompt import Options


@overload
def generate(
    session: Session,
    prompt: str,
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    stop_strings: Sequence[str] = ...,
    speculate: bool = ...,
) -> str: ...
@overload
def generate(
    session: Session,
    prompt: list[str],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    stop_strings: Sequence[str] = ...,
    speculate: bool = ...,
) -> list[str]: ...
def generate(
    session: Session,
    prompt: str | list[str],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    stop_strings: Sequence[str] = (),
    speculate: bool = False,
) -> str | list[str]:
    """Continue a text, or several together.

    Args:
        session: from :func:`load_session`.
        prompt: one text or several.
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
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"a prompt is a text, or a list of texts; found {shown(prompt)}")
    tokenizer = session.tokenizer
    stopping = stopping_for(session, max_new_tokens, stop_strings)
    ids, drafts = [session.encode(text) for text in texts], drafts_of(session, speculate)
    rows = generate_ids(session, ids, sampling=sampling, decode=tokenizer.decode, stopping=stopping, drafts=drafts)
    results = [cut_at_stop(tokenizer.decode(row.ids), stopping.stop_strings) for row in rows]
    return results[0] if isinstance(prompt, str) else results


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
