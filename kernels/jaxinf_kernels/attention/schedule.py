"""Which blocks of rows and columns a kernel visits, in which order."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinf_kernels.attention.masks import COLUMN, EMPTY, FULL, ROW, SCALAR, Mask, Span, lengths
from jaxinf_kernels.attention.problem import Problem

FIRST, LAST = 4, 8
"""Flags beside a visit's kind: the first and the last of its row or column."""


class Schedule(NamedTuple):
    """Visits in order; each row, or column, of blocks has at least one."""

    rows: np.ndarray
    """[T] number of the block of rows."""
    columns: np.ndarray
    """[T] number of the block of columns."""
    kinds: np.ndarray
    """[T] EMPTY, MIXED or FULL, plus FIRST and LAST."""


def edged(problem: Problem, columns: int, block: int, leaves: Any = None) -> Mask | None:
    """Return the mask, by default without leaves, with the end of the last block of columns."""
    mask = problem.shown([None] * len(problem.kinds) if leaves is None else leaves)
    if columns % block:
        end = lengths(keys=columns)
        mask = end if mask is None else mask & end
    return mask


class Sizes(NamedTuple):
    """What is cut into blocks."""

    n: int
    """Queries."""
    m: int
    """Keys."""
    rows: int
    """Queries in a block."""
    columns: int
    """Keys in a block."""
    first: int = 0
    """The first query's position: of a stretch of a sequence."""

    @property
    def spans(self) -> tuple[Span, Span]:
        """The positions of blocks of queries and of keys."""
        return _spans(self.n, self.rows, self.first), _spans(self.m, self.columns, 0)


def _spans(size: int, block: int, first: int) -> Span:
    low = np.arange(-(-size // block)) * block
    return Span(low + first, np.minimum(low + block, size) - 1 + first)


def schedule(problem: Problem, sizes: Sizes, by_rows: bool, every: bool = False) -> Schedule:
    """Plan the visits of blocks that are not empty, row by row or column by column.

    Args:
      problem: whose mask's known part counts.
      sizes: of the blocks.
      by_rows: the order.
      every: whether empty blocks are visited too.

    Returns:
      The schedule.
    """
    m, columns = sizes.m, sizes.columns
    i, j = sizes.spans
    shape = len(i.low), len(j.low)
    mask = edged(problem, m, columns)
    if mask is None:
        kinds = np.full(shape, FULL)
    else:
        down, right = Span(*(a[:, None] for a in i)), Span(*(a[None] for a in j))
        # the last block's columns end where the keys do, and are edged for being filled up
        found = np.asarray(mask.blocks(down, right)) if problem.mask is not None else FULL
        kinds = np.array(np.broadcast_to(found, shape))
        if m % columns:
            kinds[:, -1] = np.minimum(kinds[:, -1], 1)
    table = kinds if by_rows else kinds.T
    visits: list[tuple[int, int, int]] = []
    for line, row in enumerate(table):
        there = np.flatnonzero(row + every) if row.any() or every else np.zeros(1, int)
        for place in there:
            flags = FIRST * (place == there[0]) + LAST * (place == there[-1])
            visits.append((line, int(place), int(row[place]) + flags))
    lines, places, marks = (np.array(a, np.int32) for a in zip(*visits, strict=True))
    return Schedule(*((lines, places) if by_rows else (places, lines)), marks)


def at_run_time(problem: Problem, leaves: tuple[Array, ...], plan: Schedule, sizes: Sizes) -> Array:
    """Return the visits' kinds [B or 1, T] where leaves are known: more may turn out empty or full.

    Args:
      problem: what is asked.
      leaves: the mask's, with the batch in front.
      plan: the visits.
      sizes: as in :func:`schedule`.
    """
    _, m, rows, columns, _ = sizes
    if not leaves:
        return jnp.asarray(plan.kinds)[None]
    i, j = sizes.spans
    down = Span(*(a[plan.rows] for a in i))
    right = Span(*(a[plan.columns] for a in j))

    def bounds(leaf: Array, kind: str) -> Span | None:
        if kind == SCALAR:
            return Span(leaf, leaf)
        if kind not in (ROW, COLUMN):
            return None
        block, visited = (rows, plan.rows) if kind == ROW else (columns, plan.columns)
        whole = jnp.pad(leaf, (0, -leaf.shape[0] % block), mode="edge").reshape(-1, block)
        return Span(whole.min(1)[visited], whole.max(1)[visited])

    def one(*leaves: Array) -> Array:
        shown = [bounds(a, kind) for a, kind in zip(leaves, problem.kinds, strict=True)]
        mask = problem.shown(shown)
        assert mask is not None
        return jnp.broadcast_to(mask.blocks(down, right), plan.kinds.shape)

    flags, known = plan.kinds[None] & ~3, plan.kinds[None] & 3
    found = jax.vmap(one)(*leaves)
    if m % columns:  # what is filled up is not seen
        last = plan.columns[None] == (m - 1) // columns
        found = jnp.where(last, jnp.minimum(found, 1), found)
    found = jnp.where(known == EMPTY, EMPTY, found)
    return (found + flags).astype(jnp.int32)
