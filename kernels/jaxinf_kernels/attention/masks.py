"""Which query sees which key: an algebra of masks that knows which blocks are empty.

A mask is asked twice. In a kernel it says for a block of rows and columns what is seen there. On
the host it says of whole blocks whether they are empty, full or mixed, so that empty ones are not
visited and full ones not masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

EMPTY, MIXED, FULL = 0, 1, 2

ROW, COLUMN, CELL, SCALAR = "row", "column", "cell", "scalar"
"""What a leaf of a mask holds a number for."""


class Span(NamedTuple):
    """The least and the largest of a block's numbers."""

    low: Any
    high: Any


def _static() -> Any:
    return field(metadata={"static": True})


@dataclass_transform(frozen_default=True, field_specifiers=(_static,))
def _term[T](cls: type[T]) -> type[T]:
    return jax.tree_util.register_dataclass(dataclass(frozen=True)(cls))


@_term
class _Bound:
    """A number that is known when a program is built, or a leaf."""

    known: int | None = _static()
    given: Any

    @property
    def value(self) -> Any:
        return self.given if self.known is None else self.known

    @property
    def span(self) -> Span | None:
        """The number's span, for blocks: of a leaf, what stands in its place."""
        return self.given if self.known is None else Span(self.known, self.known)

    @property
    def kinds(self) -> tuple[str, ...]:
        return (SCALAR,) if self.known is None else ()


def _bound(value: Any) -> _Bound:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return _Bound(int(value), None)
    value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(
            f"a mask's bound must be one whole number, got {value.dtype} of shape {value.shape}; "
            "one for each example goes through jax.vmap."
        )
    return _Bound(None, value)


def _compare(value: Span, bound: Span | None) -> Any:
    """Blocks in which value <= bound: in no place, in some or in all."""
    if bound is None:
        return MIXED
    return 0 * value.low + (value.low <= bound.high) + (value.high <= bound.low)


@_term
class _Diagonal:
    """Columns up to so many after the row."""

    bound: _Bound

    def sees(self, i: Any, j: Any) -> Any:
        return j - i <= self.bound.value

    def blocks(self, i: Span, j: Span) -> Any:
        return _compare(Span(j.low - i.high, j.high - i.low), self.bound.span)

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.bound.kinds


@_term
class _Before:
    """Rows or columns before a bound."""

    bound: _Bound
    rows: bool = _static()

    def sees(self, i: Any, j: Any) -> Any:
        return (i if self.rows else j) + 0 * (j if self.rows else i) < self.bound.value

    def blocks(self, i: Span, j: Span) -> Any:
        span, other = (i, j) if self.rows else (j, i)
        span = Span(span.low + 1 + 0 * other.low, span.high + 1 + 0 * other.low)
        return _compare(span, self.bound.span)

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.bound.kinds


@_term
class _Chunk:
    """Rows and columns of one chunk."""

    size: int = _static()

    def sees(self, i: Any, j: Any) -> Any:
        return _quotient(i, self.size) == _quotient(j, self.size)

    def blocks(self, i: Span, j: Span) -> Any:
        rows, columns = (Span(s.low // self.size, s.high // self.size) for s in (i, j))
        return _equal(rows, columns)

    @property
    def kinds(self) -> tuple[str, ...]:
        return ()


def _quotient(a: Any, size: int) -> Any:
    """Whole chunks before a position; jnp's own division asks a TPU for its generation."""
    return jax.lax.div(a, jnp.full_like(a, size))


def _equal(a: Span, b: Span) -> Any:
    """Blocks in which two numbers are equal."""
    meet = (a.low <= b.high) & (b.low <= a.high)
    same = (a.low == a.high) & (b.low == b.high) & (a.low == b.low)
    return 0 * a.low + meet + same


@_term
class _Same:
    """Rows and columns of one segment."""

    rows: Any
    columns: Any

    def sees(self, i: Any, j: Any) -> Any:
        return self.rows == self.columns

    def blocks(self, i: Span, j: Span) -> Any:
        if self.rows is None or self.columns is None:
            return MIXED + 0 * (i.low + j.low)
        return _equal(self.rows, self.columns)

    @property
    def kinds(self) -> tuple[str, ...]:
        return ROW, COLUMN


class _Host:
    """An array known when a program is built, compared by what it holds."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.key = array.shape, array.tobytes()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Host) and self.key == other.key


@_term
class _Cells:
    """Any cells."""

    known: _Host | None = _static()
    cells: Any

    def sees(self, i: Any, j: Any) -> Any:
        return self.cells != 0

    def blocks(self, i: Span, j: Span) -> Any:
        if self.known is None:
            return MIXED + 0 * (i.low + j.low)
        # how many are seen above and left of every corner: a block's number is by four of them
        n, m = self.known.array.shape
        corners = np.pad(self.known.array.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        top, bottom = np.minimum(i.low, n), np.minimum(i.high + 1, n)
        left, right = np.minimum(j.low, m), np.minimum(j.high + 1, m)
        seen = corners[bottom, right] - corners[top, right]
        seen = seen - corners[bottom, left] + corners[top, left]
        return (seen > 0) + (seen == (bottom - top) * (right - left)).astype(np.int64) * (seen > 0)

    @property
    def kinds(self) -> tuple[str, ...]:
        return (CELL,)


@_term
class _Both:
    first: Any
    second: Any

    def sees(self, i: Any, j: Any) -> Any:
        return self.first.sees(i, j) & self.second.sees(i, j)

    def blocks(self, i: Span, j: Span) -> Any:
        a, b = self.first.blocks(i, j), self.second.blocks(i, j)
        # two mixed ones may have no cell in common, or many: mixed
        return a * (a <= b) + b * (b < a)

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.first.kinds + self.second.kinds


@_term
class _Not:
    inner: Any

    def sees(self, i: Any, j: Any) -> Any:
        return self.inner.sees(i, j) ^ True  # Mosaic for GPUs has no way to lower ~

    def blocks(self, i: Span, j: Span) -> Any:
        return FULL - self.inner.blocks(i, j)

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.inner.kinds


@_term
class Mask:
    """Which query (row) sees which key (column); combined by ``&``, ``|`` and ``~``."""

    term: Any

    def __and__(self, other: "Mask") -> "Mask":
        return Mask(_Both(self.term, other.term))

    def __or__(self, other: "Mask") -> "Mask":
        return ~(~self & ~other)

    def __invert__(self) -> "Mask":
        return Mask(self.term.inner if isinstance(self.term, _Not) else _Not(self.term))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each leaf holds a number for."""
        return self.term.kinds

    def sees(self, i: Any, j: Any) -> Any:
        """Return what is seen at rows i and columns j, arrays that broadcast; so must leaves."""
        return self.term.sees(i, j)

    def blocks(self, i: Span, j: Span) -> Any:
        """Return EMPTY, MIXED or FULL for blocks; leaves are spans, or None where unknown."""
        return self.term.blocks(i, j)

    def check(self, n: int, m: int) -> None:
        """Raise where a leaf is not for n rows and m columns."""
        shapes = {ROW: (n,), COLUMN: (m,), CELL: (n, m), SCALAR: ()}
        for leaf, kind in zip(jax.tree.leaves(self), self.kinds, strict=True):
            if leaf.shape != shapes[kind]:
                raise ValueError(
                    f"a mask for {n} queries and {m} keys has an array of shape {leaf.shape} where "
                    f"{shapes[kind]} belongs."
                )

    def dense(self, n: int, m: int) -> Bool[Array, "n m"]:
        """Return the mask as an array."""
        spread = {ROW: lambda a: a[:, None], COLUMN: lambda a: a[None], CELL: lambda a: a}
        leaves, tree = jax.tree.flatten(self)
        shown = [spread.get(k, lambda a: a)(a) for a, k in zip(leaves, self.kinds, strict=True)]
        i, j = jnp.arange(n)[:, None], jnp.arange(m)[None]
        return jnp.broadcast_to(tree.unflatten(shown).sees(i, j), (n, m))


def causal(offset: int | Int[Array, "..."] = 0) -> Mask:
    """Row i sees columns j <= i + offset.

    Args:
      offset: by how much rows are later than columns: with n queries that end a sequence of m keys
        it is m - n. A number known when the program is built lets empty blocks be skipped.

    Returns:
      The mask.
    """
    return Mask(_Diagonal(_bound(offset)))


def window(before: int | None, after: int | None = 0, offset: int | Int[Array, "..."] = 0) -> Mask:
    """Row i sees columns from i + offset - before to i + offset + after.

    Args:
      before: columns before the row's own; None for all.
      after: columns after it; None for all.
      offset: as in :func:`causal`.

    Returns:
      The mask; ``window(size - 1)`` is a causal sliding window of that size.
    """
    if (before is not None and before < 0) or (after is not None and after < 0):
        raise ValueError(f"a window extends by no fewer than 0 columns, got {before} and {after}.")
    masks = []
    if after is not None:
        masks.append(causal(offset + after))
    if before is not None:
        masks.append(~causal(offset - before - 1))
    if not masks:
        raise ValueError("a window without bounds sees everything: leave the mask out.")
    return masks[0] if len(masks) == 1 else masks[0] & masks[1]


def chunks(size: int) -> Mask:
    """Rows see the columns of their own chunk of ``size`` positions; with causal() in turn."""
    if size < 1:
        raise ValueError(f"a chunk has at least one position, got {size}.")
    return Mask(_Chunk(size))


def prefix(length: int | Int[Array, "..."]) -> Mask:
    """What is in front, seen from all rows: ``masks.causal() | masks.prefix(k)`` say."""
    return Mask(_Before(_bound(length), False))


def lengths(
    queries: int | Int[Array, "..."] | None = None,
    keys: int | Int[Array, "..."] | None = None,
) -> Mask:
    """What is there of a padded sequence: rows before ``queries`` see columns before ``keys``."""
    ends = (queries, True), (keys, False)
    masks = [Mask(_Before(_bound(end), rows)) for end, rows in ends if end is not None]
    if not masks:
        raise ValueError("lengths takes a number of queries, of keys, or both.")
    return masks[0] if len(masks) == 1 else masks[0] & masks[1]


def segments(queries: Int[Array, "..."], keys: Int[Array, "..."] | None = None) -> Mask:
    """Rows see the columns of their own segment, for examples packed into one sequence.

    Args:
      queries: a number for each query.
      keys: one for each key; the queries' by default.
    """
    queries = jnp.asarray(queries)
    keys = queries if keys is None else jnp.asarray(keys)
    if queries.ndim != 1 or keys.ndim != 1:
        raise ValueError(
            f"segments takes a number for each query and each key, got shapes {queries.shape} and "
            f"{keys.shape}; a batch of them goes through jax.vmap."
        )
    return Mask(_Same(queries, keys))


def cells(array: Bool[Array, "..."] | np.ndarray) -> Mask:
    """Any mask. One of NumPy is known when the program is built, and its empty blocks skipped."""
    if array.ndim != 2:
        raise ValueError(f"a mask has rows and columns, got shape {array.shape}.")
    known = _Host(np.asarray(array, bool)) if isinstance(array, np.ndarray) else None
    return Mask(_Cells(known, jnp.asarray(array)))


def every(masks: Sequence[Mask]) -> Mask | None:
    """Return the mask that sees where all do; None for none."""
    total = None
    for mask in masks:
        total = mask if total is None else total & mask
    return total
