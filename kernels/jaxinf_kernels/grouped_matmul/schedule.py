"""Which blocks of rows are visited for which group, found from the groups' sizes.

A visit is a pair of a block of rows and a group that has some of them. There are as many as blocks,
and one more for each border of groups inside a block: so their largest number is known without the
sizes, and only the table depends on them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

THERE, FIRST, LAST, FULL = 1, 2, 4, 8
"""Flags of a visit: whether the group has rows in the block, the first and the last visit of a
result, whether all rows of the block are the group's."""


class Visits(NamedTuple):
    """Visits in order, [T] each; what is left over at the end repeats a place and has no flag."""

    groups: Array
    """Number of the group."""
    blocks: Array
    """Number of the block of rows."""
    flags: Array
    low: Array
    """The group's first row, counted from the block's."""
    high: Array
    """One beyond its last, so counted too."""


def most(n: int, block: int, groups: int) -> int:
    """Return the number of visits that no sizes exceed."""
    return -(-n // block) + groups - 1


def bounds(sizes: Int[Array, " groups"], n: int) -> tuple[Array, Array]:
    """Return the groups' first rows and those beyond their last."""
    ends = jnp.minimum(jnp.cumsum(jnp.maximum(sizes, 0)), n)
    return jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]]), ends


def visits(sizes: Int[Array, " groups"], n: int, block: int, *, by_group: bool) -> Visits:
    """Plan the visits, block by block or group by group.

    Args:
      sizes: of the groups, which follow one another from row 0.
      n: rows.
      block: rows in a block.
      by_group: results are those of groups, of which each has a visit, also without rows; else they
        are those of blocks, of which each has one.

    Returns:
      The table.
    """
    sizes = sizes.astype(jnp.int32)
    groups, count = sizes.shape[0], -(-n // block)
    begins, ends = bounds(sizes, n)
    width = jnp.int32(block)
    first = jax.lax.div(begins, width)
    there = ends > begins
    number = jnp.where(there, jax.lax.div(ends - 1, width) - first + 1, 1 if by_group else 0)
    if not by_group:  # blocks that no group reaches follow as if of one group more
        reached = jax.lax.div(ends[-1:] + (width - 1), width)
        first = jnp.concatenate([first, reached])
        number = jnp.concatenate([number, count - reached])
        there = jnp.concatenate([there, jnp.zeros(1, bool)])
    upto = jnp.cumsum(number)
    slots = jnp.arange(most(n, block, groups), dtype=jnp.int32)
    kept = jnp.minimum(slots, upto[-1] - 1)
    line = jnp.sum(kept[:, None] >= upto[None], axis=1, dtype=jnp.int32)
    place = jnp.minimum(first[line] + kept - (upto - number)[line], count - 1)
    computed = there[line] & (slots < upto[-1])
    last = jnp.max(jnp.where(ends > begins, jnp.arange(groups, dtype=jnp.int32), 0))
    group = line if by_group else jnp.where(line < groups, line, last)
    low = begins[group] - place * block
    high = ends[group] - place * block
    result = group if by_group else place
    changes = result[1:] != result[:-1]
    starts = jnp.concatenate([jnp.ones(1, bool), changes])
    finishes = jnp.concatenate([changes, jnp.zeros(1, bool)]) | (slots == upto[-1] - 1)
    full = computed & (low <= 0) & (high >= block)
    flags = sum(
        jnp.where(mark, flag, 0)
        for mark, flag in ((computed, THERE), (starts, FIRST), (finishes, LAST), (full, FULL))
    )
    return Visits(group, place, jnp.asarray(flags, jnp.int32), low, high)
