"""Queries of sequences of different lengths, in blocks of one sequence each."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


class Plan(NamedTuple):
    """Which queries are whose and in which block they are."""

    sequence: Array
    """[N] of each block."""
    first: Array
    """[N] position of its first query."""
    end: Array
    """[N] position after its last; zero where it has none."""
    source: Array
    """[N, Q] number of the query; any where there is none."""
    block: Array
    """[T] of each query."""
    place: Array
    """[T] in it."""
    there: Array
    """[T] whether it is any sequence's."""


def plan(
    starts: Int[Array, " sequences"],
    counts: Int[Array, " sequences"],
    lengths: Int[Array, " sequences"],
    tokens: int,
    queries: int,
    blocks: int,
) -> Plan:
    """Cut sequences' queries into blocks.

    Args:
      starts: number of each sequence's first query; they do not fall.
      counts: how many queries it has.
      lengths: of the sequences, up to and with their queries.
      tokens: queries in all.
      queries: of a block.
      blocks: how many suffice.
    """
    size = jnp.full_like(counts, queries)
    ends = jnp.cumsum(jax.lax.div(counts + queries - 1, size), dtype=jnp.int32)
    begins = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    number = jnp.arange(blocks, dtype=jnp.int32)
    mine = jnp.minimum(jnp.searchsorted(ends, number, side="right"), len(ends) - 1)
    before = (number - begins[mine]) * queries
    used = jnp.minimum(queries, counts[mine] - before)
    position = lengths[mine] - counts[mine] + before
    source = (starts[mine] + before)[:, None] + jnp.arange(queries, dtype=jnp.int32)[None]
    t = jnp.arange(tokens, dtype=jnp.int32)
    owner = jnp.maximum(jnp.searchsorted(starts, t, side="right") - 1, 0)
    within = t - starts[owner]
    there = (within >= 0) & (within < counts[owner])
    within = jnp.where(there, within, 0)
    return Plan(
        mine.astype(jnp.int32),
        position,
        jnp.where(used > 0, position + used, 0),
        jnp.clip(source, 0, max(tokens - 1, 0)),
        jnp.where(there, begins[owner] + jax.lax.div(within, jnp.full_like(within, queries)), 0),
        jax.lax.rem(within, jnp.full_like(within, queries)),
        there,
    )


def gathered(q: Array, way: Plan, groups: int) -> Array:
    """Return queries [T, H, D] in blocks [N, G, R, D]."""
    x = q[way.source]
    blocks, queries, heads, d = x.shape
    x = x.reshape(blocks, queries, groups, heads // groups, d)
    return jnp.moveaxis(x, 2, 1).reshape(blocks, groups, -1, d)


def scattered(out: Array, way: Plan, queries: int, none: Any) -> Array:
    """Return what blocks [N, G, R, ...] hold for each query, [T, H, ...]."""
    blocks, groups, rows, *rest = out.shape
    out = out.reshape(blocks, groups, queries, rows // queries, *rest)
    found = out[way.block, :, way.place]
    found = found.reshape(len(found), -1, *rest)
    there = way.there.reshape(-1, *(1,) * (found.ndim - 1))
    return jnp.where(there, found, none)
