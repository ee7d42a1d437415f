"""Running a model: one protocol, one file per runtime.

A session keeps one batch's cache: ``prefill`` starts anew, ``decode`` goes on, and between two calls rows ``join``,
``leave``, are copied and cut back. ``run`` is a single call with the cache handed in and out, for proof.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from glm_export.artifacts.initial_cache import InitialCache
from glm_export.errors import InputError
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt, prefill_feeds, prefix_prompt
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.inputs.rows import rows_staying
from glm_export.sessions.kv_cache import KvCache, RowValues
from glm_export.sessions.loop_request import LoopRequest
from glm_export.sessions.turns import Turn, Turns
from glm_export.spec.batch_invariance import BatchInvariance
from glm_export.spec.config import GlmConfig
from glm_export.spec.signature import Cache, Signature, past_names
from glm_export.tokenizers import Tokenizer, load_tokenizer
from glm_export.tokenizers.infilling import InfillingTokenizer

if TYPE_CHECKING:  # it brings torch along
    from glm_export.sessions.device.loop import TokenLoop

Logits = NDArray[np.float32]
Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDescription:
    """What runs a model, and how.

    ``runtime``: the library, and ``version``: its own. ``device``: cpu or cuda. ``dialect``: of the program;
    None where the checkpoint itself runs. ``dtype``: of what is not quantized. ``threads``: of one operator; None where
    no processor computes. ``ragged``: rows with different numbers of tokens are read in one call; else in several.
    """

    runtime: str
    version: str
    device: str
    dialect: str | None
    dtype: str
    cache: Cache
    threads: int | None
    ragged: bool = False


class Session(ABC):
    """A model ready to run. Use it in a ``with`` block, or call :meth:`close`.

    ``signature``: of the program that runs; for PyTorch the canonical one. ``cache``: the batch's. What changes its
    rows takes the last call's feeds and gives those to go on from with ``next_step``, so that both stay in step.

    It has one user at a time, a thread or a stream, from a prompt to what is written behind it (``turns.py``); another
    gets a ``SessionBusyError``. A runtime implements ``_prefill``, ``_decode``, ``_run`` and ``_close``.
    """

    signature: Signature
    cache: KvCache[Any]
    initial_cache: InitialCache | None = None
    """What every row begins with, as the program keeps it."""
    prompt_form_tokens: int | None = None
    """Calls of more tokens are multiplied by weights of a second, finer form, in every layer; None where not."""

    def __init__(self, folder: Path, config: GlmConfig) -> None:
        self.folder = folder
        self.config = config
        self._turns = Turns()
        self._freed: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.folder}>"

    if not TYPE_CHECKING:  # mypy would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            """What is missing because the session is closed says so."""
            if name in self.__dict__.get("_freed", ()):
                raise self._turns.closed_error()
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def exclusive(self, *, wait: bool = False) -> Turn:
        """``with session.exclusive():`` no other thread uses the session within. May be nested.

        Calls of :meth:`prefill` and :meth:`decode` that belong together go into one; what :mod:`generation` has keeps
        the session by itself. Coroutines of one thread are one user: give each a stream.

        Args:
            wait: until another user has ended, in place of an error.

        Entering raises:
            SessionBusyError: there is another user, and ``wait`` is false, or it would wait for a stream that the same
                thread has not read to its end.
            InputError: the session is closed.
        """
        return self._turns.turn(stream=False, wait=wait)

    def stream(self) -> Turn:
        """A turn for what is handed out step by step: a user of its own, in whichever thread its steps are read.

        ``pause`` it before a step is handed out, and ``resume`` behind. Entering raises as :meth:`exclusive`.
        """
        return self._turns.turn(stream=True)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside the model."""
        return load_tokenizer(self.folder, self.config)

    def encode(self, text: str) -> list[int]:
        """Ids from which the model writes on, with whatever its family puts around a text."""
        tokenizer = self.tokenizer
        return tokenizer.generation_ids(text) if isinstance(tokenizer, InfillingTokenizer) else tokenizer.encode(text)

    def prompt(self, ids: Sequence[int]) -> Prompt:
        """Token ids as a prompt; for prefix families this finds ``<sop>`` and the mask token.

        ChatGLM-6B writes for [gMASK] where there is one, else for [MASK]; GLM for the first mask of any kind.

        Raises:
            InputError: a prefix family's prompt without ``<sop>`` or without a mask token.
        """
        if not self.config.prefix_mask:
            return Prompt(ids=tuple(ids))
        if self.config.sop_token_id is not None:
            return prefix_prompt(ids, self.config.sop_token_id, [{i} for i in self.config.mask_token_ids])
        if not isinstance(self.tokenizer, InfillingTokenizer):
            raise InputError(f"family {self.config.family} needs its tokenizer to find <sop> and masks in a prompt")
        return prefix_prompt(ids, self.tokenizer.sop_id, [set(self.tokenizer.mask_ids.values())])

    def feeds(self, prompts: Sequence[Prompt]) -> Feeds:
        """Prompts as this session wants them padded.

        Raises:
            InputError: no prompt, an empty one, an id beyond the vocabulary, or one longer than the context.
        """
        return prefill_feeds(prompts, self.config)

    @property
    def capacity(self) -> int | None:
        """Columns the cache can hold, where there is a limit besides the context."""
        return None

    @property
    def max_rows(self) -> int | None:
        """Rows of a batch at most, where there is a limit."""
        return None

    def remaining_tokens(self, prompt: Prompt) -> int:
        """How many tokens can be written after a prompt."""
        remaining = prompt.remaining_tokens(self.config)
        held = self.config.prefix_length + len(prompt.ids)
        return remaining if self.capacity is None else min(remaining, self.capacity - held)

    def last_position(self, feeds: Feeds) -> int:
        """Where a row that is finished waits for others: the last position, or where rows have own lengths, column."""
        if not isinstance(feeds, RightPaddedFeeds):
            return self.config.max_positions - 1
        return min(self.config.most_columns, self.capacity or self.config.most_columns) - 1

    @abstractmethod
    def describe(self) -> SessionDescription:
        """What runs the model, and how."""

    @property
    @abstractmethod
    def batch_invariance(self) -> BatchInvariance:
        """How far a row's numbers of a decode step are the same alone and in a batch."""

    @property
    def rounds_by_call(self) -> bool:
        """Whether a token's numbers depend on how many stand in its call, by more than last bits."""
        return not self.batch_invariance.usable

    @abstractmethod
    def weight_traffic(self, rows: int) -> int:
        """Bytes of weights that a decode step of so many rows reads."""

    def device_memory(self) -> int | None:
        """Bytes in use on the device, by all; None where the session does not know."""
        return None

    def prefill(self, feeds: Feeds) -> Logits:
        """Forget the cache and read a prompt.

        Returns:
            float32 ``[B, S, V]``, or ``[B, 1, V]`` where the program computes only the last row.

        Raises:
            InputError: what is fed does not fit, or the session is closed.
            SessionBusyError: it has another user.
        """
        with self._turns.begins:
            return self._prefill(feeds)

    def decode(self, feeds: Feeds) -> Logits:
        """Read on from the cache: one token a row, or a chunk. Returns and raises as :meth:`prefill`.

        Raises:
            SessionBusyError: there is another user, or was one since the prompt was read.
        """
        with self._turns.continues:
            return self._decode(feeds)

    @abstractmethod
    def _prefill(self, feeds: Feeds) -> Logits:
        """As :meth:`prefill`, for the one user."""

    @abstractmethod
    def _decode(self, feeds: Feeds) -> Logits:
        """As :meth:`decode`, for the one user."""

    @property
    def chooses_tokens(self) -> bool:
        """Whether decode steps can choose their tokens themselves, by :meth:`token_loop`."""
        return False

    def token_loop(self, feeds: Feeds, request: LoopRequest) -> TokenLoop:  # noqa: ARG002
        """Decode steps that choose their tokens themselves: at least one, fewer than asked for where room is short.

        Args:
            feeds: the first step's.
            request: how tokens are chosen, and when rows end.

        Raises:
            InputError: what is fed does not fit, or the session leaves it to the host.
        """
        raise InputError(f"{self.describe().runtime} chooses no tokens here; choose them from the logits of decode")

    def read_loop(self, loop: TokenLoop, last_position: int) -> Generator[list[int], None, None]:
        """A loop's tokens, step by step. Close it in the turn it was begun in. Raises as :meth:`decode`."""
        tokens, read = loop.tokens(), 0
        try:
            while True:
                with self._turns.continues:
                    ids = next(tokens, None)
                if ids is None:
                    return
                read += 1
                yield ids
        finally:
            # A step that was launched in vain is behind every row's end.
            self.cache.wrote_steps(read, last_position)

    @abstractmethod
    def new_cache(self) -> KvCache[Any]:
        """A cache of this session's kind that holds nothing."""

    def first_past(self, rows: int) -> Tensors:
        """The past a batch begins with in the canonical layout, in floats: ``[B, K, P, D]``, P 0 without a prefix."""
        config, initial = self.config, self.initial_cache
        names = [name for layer in range(config.num_layers) for name in past_names(layer)]
        if initial is None:
            return {name: np.zeros((rows, config.kv_heads, 0, config.head_dim), np.float32) for name in names}
        arrays = self._in_floats(initial.arrays)
        return {name: np.repeat(arrays[name], rows, axis=0) for name in names}

    def _in_floats(self, past: Tensors) -> Tensors:
        """A past as this session keeps it, in floats."""
        return past

    def join(self, feeds: Feeds, new: Feeds, given: RowValues[Any] | None = None) -> tuple[Feeds, Logits]:
        """Read prompts while the batch waits; their rows stand behind its own from then on.

        Args:
            feeds: the batch's last call.
            new: prompts, as :meth:`feeds` pads them.
            given: what ``cache.row`` gave of a row that begins as the one new prompt does: it is not read again.

        Returns:
            Feeds of the whole batch to go on from, and logits of the new rows alone, as from :meth:`prefill`; with
            ``given`` of the tokens that were read.

        Raises:
            InputError: there would be more rows than the session takes, a prompt is too long, ``given`` does not fit,
                or ``feeds`` are not the last call's.
            SessionBusyError: the session has another user, or had one since the batch was read.
        """
        # Where no row is left there is nothing to go on from: it is anybody's.
        with self._turns.continues if self.cache.rows else self._turns.begins:
            return self._join(feeds, new, given)

    def _join(self, feeds: Feeds, new: Feeds, given: RowValues[Any] | None) -> tuple[Feeds, Logits]:
        self._require_rows(feeds, feeds.batch + new.batch)
        if given is not None and new.batch != 1:
            raise InputError(f"{new.batch} prompts are to begin with one row's values; join them one after another")
        batch, self.cache = self.cache, self.new_cache()
        try:
            if given is None or given.length <= self.cache.prefix:
                logits = self.prefill(new)
            else:
                self.cache.join([given])
                logits = self.decode(new.after(given.length - self.cache.prefix))
            read = [self.cache.row(row) for row in range(new.batch)]
            self.cache.clear()
        finally:
            self.cache = batch
        self.cache.join(read)
        return feeds.join(new), logits

    def admit(self, feeds: RightPaddedFeeds, rows: Sequence[RowValues[Any]]) -> RightPaddedFeeds:
        """Rows stand behind the batch's with what they hold already, or with nothing: they are read as it goes on.

        Raises:
            InputError: prompts of this session are read at once, there would be more rows than it takes, or ``feeds``
                are not the last call's.
            SessionBusyError: the session has another user, or had one since the batch was read.
        """
        with self._turns.continues if self.cache.rows else self._turns.begins:
            if self.signature.whole_prompts:
                raise InputError("prompts of this program are read at once; read them with join")
            self._require_rows(feeds, feeds.batch + len(rows))
            self.cache.join(rows)
            return RightPaddedFeeds.holding(self.cache.lengths.tolist(), self.cache.prefix)

    def select(self, feeds: Feeds, rows: Sequence[int]) -> Feeds:
        """Go on with these rows, in this order; one that is named twice is copied, as beams want it.

        Raises:
            InputError: there is no such row, there would be more than the session takes, or ``feeds`` are not the
                last call's.
        """
        with self._turns.continues:
            self._require_rows(feeds, len(rows))
            self.cache.select(rows)
            return feeds.select(rows)

    def leave(self, feeds: Feeds, rows: Iterable[int]) -> Feeds:
        """Go on without these rows. Raises as :meth:`select`."""
        return self.select(feeds, rows_staying(feeds.batch, rows))

    def copy_rows(self, feeds: Feeds, rows: Sequence[int]) -> Feeds:
        """Go on with these rows twice, the second time behind all others. Raises as :meth:`select`."""
        return self.select(feeds, [*range(feeds.batch), *rows])

    def truncate(self, feeds: Feeds, row: int, length: int) -> Feeds:
        """Go on from a row's first ``length`` tokens: drafts were refused, or another text begins alike.

        Lengths count a P-Tuning prefix, here and in ``cache``: it cannot be cut.

        Raises:
            InputError: it has fewer, or it is a prefix family's whose context has more, or ``feeds`` are not the last
                call's.
        """
        with self._turns.continues:
            self._require_rows(feeds, feeds.batch)
            cut = feeds.truncate(row, length)
            self.cache.truncate(row, length)
            return cut

    def _require_rows(self, feeds: Feeds, wanted: int) -> None:
        self.cache.require_held(feeds)
        if self.max_rows is not None and wanted > self.max_rows:
            raise InputError(f"{wanted} rows are wanted, and the session takes {self.max_rows}; let some leave first")

    def run(self, tensors: Tensors) -> Tensors:
        """One call by the names of the program's signature, cache included; keeps no state. Raises as :meth:`prefill`.

        Raises:
            SessionBusyError: the session has another user.
        """
        with self._turns.single:
            return self._run(tensors)

    @abstractmethod
    def _run(self, tensors: Tensors) -> Tensors:
        """As :meth:`run`, for the one user."""

    def close(self) -> None:
        """Free the model and its cache, once a call that runs has ended. What is asked for afterwards is refused."""
        if self._turns.close():
            before = set(vars(self))
            self._close()
            self._freed = frozenset(before - set(vars(self)))

    @abstractmethod
    def _close(self) -> None:
        """Free the model and its cache."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
