"""Keys and values of one batch from one call to the next, and rows of it that come and go: one protocol.

A cache holds rows; a row holds tokens, ``lengths`` of them. What keys and values are does not depend on where they
stand, so every operation on rows is exact: a token is copied or it is not, and its position is its place in its row.

How rows stand, by kind (``spec.signature.Cache``):

- GROWING: padded on the left, and contiguous. All rows share columns, as many as the longest row has tokens; a row of n
  tokens fills the last n. The longest row decides how many columns there are: one that joins, leaves or is cut back may
  move all others to the right or to the left.
- SHARED: each row from column 0 on, in one buffer that doubles when a row outgrows it. What lies behind a row's length
  is seen by nobody and written over: a row is cut back by its length alone.
- STATIC: as SHARED, in a buffer of fixed size.

Where a batch starts from an initial cache (a P-Tuning prefix) its columns are the first of every row, and lengths count
them; padding on the left stands behind them. They are never cut, and a row apart from its batch goes without them.

Shapes: B rows, K key-value heads, C columns in use, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from glm_export.artifacts.initial_cache import InitialCache
from glm_export.errors import InputError
from glm_export.inputs.feeds import Feeds, Ids
from glm_export.inputs.rows import rows_staying, rows_there
from glm_export.spec.signature import Cache, Signature, TensorSpec, past_names, present_names


class Sliced(Protocol):
    """An array of any library."""

    def __getitem__(self, index: Any, /) -> Any:
        """A part of it."""


Array = TypeVar("Array", bound=Sliced)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowValues(Generic[Array]):
    """One row's keys and values, apart from any batch and its padding.

    ``length`` counts the ``prefix`` columns of an initial cache. ``arrays``: ``[K, length - prefix, D]`` each, key and
    value of every layer in order, kept as the cache they came from keeps them; none where nothing is left.
    """

    length: int
    prefix: int = 0
    arrays: tuple[Array, ...] = ()

    def first(self, length: int) -> RowValues[Array]:
        """Those of its first tokens.

        Raises:
            InputError: it has fewer, or a longer prefix.
        """
        if not self.prefix <= length <= self.length:
            raise InputError(f"the row has {self.length} tokens, and the first {length} are wanted")
        own = length - self.prefix
        arrays = tuple(array[:, :own] for array in self.arrays) if own else ()
        return RowValues(length=length, prefix=self.prefix, arrays=arrays)


@dataclass(frozen=True, slots=True)
class Part(Generic[Array]):
    """What stands in these columns of a row, ``[K, n, D]``."""

    row: int
    columns: slice
    values: Array


def put(values: list[Any], index: int, value: Any) -> None:
    """Put a buffer in the place of another, or behind those there are."""
    values[index : index + 1] = [value]


class KvCache(ABC, Generic[Array]):
    """The cache of one batch.

    ``lengths`` ``[B]``: tokens each row holds. A batch without rows was never started, or all have left it.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        capacity: int | None = None,
        moving: Callable[[], None] | None = None,
        initial: InitialCache | None = None,
    ) -> None:
        """Hold nothing.

        Args:
            signature: of the program whose cache it is.
            capacity: tokens a row can hold at most, where there is a limit.
            moving: called before buffers are given up that a captured step may still read.
            initial: what every row begins with.
        """
        layers = range(sum(spec.is_cache for spec in signature.inputs) // 2)
        self.kind, self.own_lengths = signature.cache, signature.own_lengths
        self.capacity = capacity
        self.lengths: Ids = np.zeros(0, np.int64)
        self._specs: list[TensorSpec] = [signature.input(name) for layer in layers for name in past_names(layer)]
        self._presents = [name for layer in layers for name in present_names(layer)]
        self._moving = moving
        self._shared_columns = 0
        self._initial = initial
        self.prefix = initial.length if initial is not None else 0

    @property
    def rows(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def columns(self) -> int:
        """Columns in use: those of the longest row, or those all rows share."""
        return int(self.lengths.max(initial=0)) if self.own_lengths else self._shared_columns

    def start(self, rows: int, columns: int) -> None:
        """Forget everything, for a batch of rows without tokens whose first call fills ``columns``.

        Raises:
            InputError: so many do not fit.
            EnvironmentMissingError: memory is short.
        """
        self._require(columns)
        self._reserve(rows, columns)
        self.lengths, self._shared_columns = np.full(rows, self.prefix, np.int64), self.prefix

    def make_room(self, columns: int) -> None:
        """See that ``columns`` tokens a row, past and new, fit; what rows hold stays.

        Raises:
            InputError: they cannot.
        """
        self._require(columns)

    def require(self, feeds: Feeds) -> None:
        """See that a call goes on from what rows hold.

        Where rows have own lengths it may begin before a row's end, and writes over what was there.

        Raises:
            InputError: it is for other rows, or for rows that hold more or less than it says.
        """
        if not self.rows:
            raise InputError("decode was called before prefill; there is no cache to read on from")
        new, before = feeds.input_ids.shape[1], feeds.tokens_before
        if not new:
            raise InputError("the call has no tokens, it says what the cache holds; decode what its next_step gives")
        if feeds.batch != self.rows:
            self._refuse(f"the call is of {feeds.batch} rows, and the cache holds {self.rows}")
        fits = before <= self.lengths if self.own_lengths else before == self.lengths
        fits &= before >= self.prefix
        if not fits.all():
            row = int(np.flatnonzero(~fits)[0])
            self._refuse(f"the call goes on behind {before[row]} tokens of row {row}, which holds {self.lengths[row]}")
        if not self.own_lengths and feeds.columns - new != self.columns:
            self._refuse(f"the call goes on behind {feeds.columns - new} columns, and the cache has {self.columns}")

    def require_held(self, feeds: Feeds) -> None:
        """See that feeds are those of the last call or change.

        Raises:
            InputError: rows hold something else.
        """
        lengths = feeds.row_lengths
        if self.rows and feeds.prefix_length != self.prefix:
            self._refuse(f"feeds are of a prefix of {feeds.prefix_length} columns, and rows begin with {self.prefix}")
        if not np.array_equal(lengths, self.lengths):
            self._refuse(f"feeds are of rows of {lengths.tolist()} tokens, and the cache holds {self.lengths.tolist()}")

    def _refuse(self, difference: str) -> NoReturn:
        advice = "change cache and feeds together, by the session's join, select, leave, copy_rows and truncate"
        raise InputError(f"{difference}; {advice}")

    def wrote(self, feeds: Feeds, chosen: slice = slice(None)) -> None:
        """A call is done, of all rows or some: they hold its tokens now."""
        self.lengths[chosen] = feeds.row_lengths
        self._shared_columns = feeds.columns

    def wrote_steps(self, steps: int, last_position: int) -> None:
        """So many decode steps are done, of all rows; where a row has its own length it ends at ``last_position``."""
        lengths = self.lengths + steps
        self.lengths = np.minimum(lengths, last_position + 1) if self.own_lengths else lengths
        self._shared_columns += steps

    def row(self, row: int) -> RowValues[Array]:
        """A copy of what a row holds. It can join a cache of the same session at any time, once or often.

        Raises:
            InputError: there is no such row.
        """
        (row,) = rows_there(self.rows, [row])
        length = int(self.lengths[row])
        columns = self._columns_of(self.lengths, self.columns)[row]
        arrays = (self._copy(self._held(index)[row, :, columns]) for index in range(len(self._specs)))
        return RowValues(length=length, prefix=self.prefix, arrays=tuple(arrays) if length > self.prefix else ())

    def join(self, rows: Sequence[RowValues[Array]]) -> None:
        """Rows are added behind the others: empty, or with what they hold already.

        GROWING: all are padded on the left up to the longest. SHARED: the buffer grows where one needs it.

        Raises:
            InputError: one is longer than a row can be.
            EnvironmentMissingError: memory is short; the batch is lost.
        """
        self._place(range(self.rows), self.lengths, rows)

    def select(self, rows: Sequence[int]) -> None:
        """Only these rows remain, in this order; one that is named twice is copied. Raises as :meth:`join`."""
        chosen = rows_there(self.rows, rows)
        self._place(chosen, self.lengths[chosen])

    def leave(self, rows: Iterable[int]) -> None:
        """Rows are removed; the others keep their order.

        GROWING: columns that only they filled go with them. Raises as :meth:`join`.
        """
        self.select(rows_staying(self.rows, rows))

    def copy_rows(self, rows: Sequence[int]) -> None:
        """These rows stand a second time behind all others, and go their own way from there. Raises as :meth:`join`."""
        self.select([*range(self.rows), *rows])

    def truncate(self, row: int, length: int) -> None:
        """A row forgets all but its first ``length`` tokens.

        GROWING: the rest of it moves to the right, up to the last column. Else nothing moves.

        Raises:
            InputError: the row holds fewer, or begins with a longer prefix.
            EnvironmentMissingError: memory is short; the batch is lost.
        """
        (row,) = rows_there(self.rows, [row])
        if not self.prefix <= length <= self.lengths[row]:
            raise InputError(f"row {row} has {self.lengths[row]} tokens and cannot be cut back to {length}")
        lengths = self.lengths.copy()
        lengths[row] = length
        if self.own_lengths:
            self.lengths = lengths
        else:
            self._place(range(self.rows), lengths)

    def clear(self) -> None:
        """Forget everything and free the memory."""
        self._move()
        self._free()
        self.lengths, self._shared_columns = np.zeros(0, np.int64), 0

    def _place(
        self, kept: Sequence[int], lengths: Ids, joining: Sequence[RowValues[Array]] = (), *, room: int = 0
    ) -> None:
        """Lay the batch out anew, one buffer after another: the first tokens of these rows, then rows that join.

        ``room``: columns a row may need soon.
        """
        joined = [max(row.length, self.prefix) for row in joining]
        after = np.concatenate([lengths, np.array(joined, np.int64)])
        columns = int(after.max(initial=0))
        self._require(columns)
        if not len(after):
            self.clear()
            return
        before, targets = self._columns_of(self.lengths, self.columns), self._columns_of(after, columns)
        starts = [before[row].start for row in kept]
        sources = [slice(at, at + int(n) - self.prefix) for at, n in zip(starts, lengths, strict=True)]
        width = self._width(max(columns, room))
        self._move()
        try:
            for index in range(len(self._specs)):
                parts = self._parts(index, kept, sources)
                parts += [row.arrays[index] if row.arrays else None for row in joining]
                filled = [Part(row, targets[row], part) for row, part in enumerate(parts) if part is not None]
                self._hold(index, len(after), width, [*self._beginnings(index, len(after)), *filled])
        except BaseException:
            # Some buffers are those of before, and some are new.
            self.clear()
            raise
        self.lengths, self._shared_columns = after, columns

    def _parts(self, index: int, rows: Sequence[int], columns: Sequence[slice]) -> list[Array | None]:
        """Of a buffer, these columns of each row; read once, for reading may copy."""
        if not rows:
            return []
        held = self._held(index)
        return [held[row, :, part] for row, part in zip(rows, columns, strict=True)]

    def _columns_of(self, lengths: Ids, columns: int) -> list[slice]:
        """Where rows of these lengths have what is their own, behind the initial cache."""
        starts = np.full_like(lengths, self.prefix) if self.own_lengths else columns - lengths + self.prefix
        own = lengths - self.prefix
        return [slice(int(start), int(start + count)) for start, count in zip(starts, own, strict=True)]

    def _beginnings(self, index: int, rows: int) -> list[Part[Array]]:
        """The initial cache in a buffer of so many rows."""
        if self._initial is None or not rows:
            return []
        values = self._own(index, self._initial.arrays[self._specs[index].name][0])
        return [Part(row, slice(0, self.prefix), values) for row in range(rows)]

    def _require(self, columns: int) -> None:
        if self.capacity is not None and columns > self.capacity:
            what = "the program's static cache holds" if self.kind is Cache.STATIC else "a row can hold"
            excess = columns - self.capacity
            raise InputError(
                f"{columns} tokens are wanted, {what} {self.capacity}: {excess} too many; shorten the prompt"
            )

    def _move(self) -> None:
        if self._moving is not None:
            self._moving()

    def _shape(self, index: int, rows: int, width: int) -> tuple[int, ...]:
        """Of a buffer, ``[B, K, W, D]``."""
        _, heads, _, channels = self._specs[index].dims
        return rows, int(heads), width, int(channels)

    @abstractmethod
    def _own(self, index: int, values: NDArray[Any]) -> Array:
        """A part for a buffer, ``[K, n, D]``, out of the host's memory."""

    @abstractmethod
    def _width(self, columns: int) -> int:
        """Columns a buffer should have that is to hold so many."""

    @abstractmethod
    def _reserve(self, rows: int, columns: int) -> None:
        """Make buffers for rows that hold no more than the initial cache."""

    @abstractmethod
    def _held(self, index: int) -> Array:
        """A buffer as it is read, ``[B, K, C or more, D]``."""

    @abstractmethod
    def _hold(self, index: int, rows: int, width: int, parts: Sequence[Part[Array]]) -> None:
        """Put a new buffer ``[rows, K, width, D]`` in the place of another: these parts, else zeros."""

    @abstractmethod
    def _copy(self, part: Array) -> Array:
        """Memory of its own for a part of a buffer."""

    @abstractmethod
    def _free(self) -> None:
        """Let go of all buffers."""
