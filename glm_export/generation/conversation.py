"""A conversation that outgrows the model's context: its oldest rounds leave, its system message stays."""

from __future__ import annotations

from glm_export.sessions.session import Session
from glm_export.tokenizers.chat import Message

ROOM_SHARE = 4
"""A reply has room for as many tokens as are asked for, or for this part of what the model holds."""


class Conversation:
    """What was said, as the next prompt. ``rounds_left_out``: how many of the oldest no longer are part of it."""

    def __init__(self, session: Session, *, system: str | None = None, max_new_tokens: int = 512) -> None:
        self._session, self._max_new_tokens = session, max_new_tokens
        self._system = [Message(role="system", content=system)] if system else []
        self._rounds: list[tuple[Message, Message]] = []
        self.rounds_left_out = 0

    @property
    def messages(self) -> list[Message]:
        """Those still part of it."""
        return [*self._system, *(message for spoken in self._rounds for message in spoken)]

    def ask(self, question: str) -> list[int]:
        """Ids of the prompt, with a question behind what was said; oldest rounds leave where a reply had no room.

        Raises:
            InputError: the model's prompt cannot express the conversation, or the question is no Unicode text.
        """
        asked = Message(role="user", content=question)
        while True:
            ids = self._session.tokenizer.chat([*self.messages, asked])
            if not self._rounds or self._room(ids) >= self._wanted:
                return ids
            del self._rounds[0]
            self.rounds_left_out += 1

    @property
    def system(self) -> str | None:
        """The system message, where there is one."""
        return str(self._system[0]["content"]) if self._system else None

    def set_system(self, text: str) -> None:
        """Another system message from the next question on; what was said stays.

        Raises:
            InputError: the model's prompt has no place for one, or it is no Unicode text; the former stays.
        """
        system = Message(role="system", content=text)
        self._session.tokenizer.chat([system, Message(role="user", content="?")])
        self._system = [system]

    def clear(self) -> None:
        """Forget what was said; the system message stays."""
        self._rounds, self.rounds_left_out = [], 0

    def answered(self, question: str, reply: str) -> None:
        """Remember a round."""
        self._rounds.append((Message(role="user", content=question), Message(role="assistant", content=reply)))

    @property
    def _wanted(self) -> int:
        held = self._session.config.max_positions
        if self._session.capacity is not None:
            held = min(held, self._session.capacity)
        return max(1, min(self._max_new_tokens, held // ROOM_SHARE))

    def _room(self, ids: list[int]) -> int:
        """Tokens that can be written behind a prompt, negative where it has no room itself."""
        prompt = self._session.prompt(ids)
        excess = prompt.excess_tokens(self._session.config)
        return -excess if excess > 0 else self._session.remaining_tokens(prompt)
