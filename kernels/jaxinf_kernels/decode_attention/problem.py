"""What attention to a cache is asked for, apart from its arrays."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.decode_attention.cache import Cache
from jaxinf_kernels.operation import How


class Operands(NamedTuple):
    """All arrays, each with the batch in front; an axis of one there serves all of it.

    Queries come in blocks of Q that follow each other in one sequence. A block's rows are all that
    read one group: row r is query r // (H // G) and head r % (H // G) of the group.
    """

    q: Array
    """[B, N, G, R, D]"""
    sequence: Array
    """[B, N]: whose the block is."""
    first: Array
    """[B, N]: position of the block's first query; those below 0 see nothing."""
    end: Array
    """[B, N]: position after the block's last query; where it is not positive, there is none."""
    table: Array
    """[B, S, P]"""
    slopes: Array | None
    """[B, G, H // G]"""
    sinks: Array | None
    """[B, G, H // G]"""
    cache: Cache


@dataclass(frozen=True)
class Problem:
    """The static part: hashable, and the same for all arrays of the same kind."""

    cache: Any
    """The cache's tree."""
    queries: int
    """Of a block."""
    given: tuple[bool, bool]
    """Whether there are slopes and sinks."""
    scale: float
    soft_cap: float | None
    window: int | None
    how: How

    def operands(self, arrays: Any) -> Operands:
        """Name the arrays of a flat list."""
        q, sequence, first, end, table = arrays[:5]
        rest = iter(arrays[5:])
        slopes, sinks = (next(rest) if there else None for there in self.given)
        cache = self.cache.unflatten(list(rest))
        return Operands(q, sequence, first, end, table, slopes, sinks, cache)

    def flat(self, operands: Operands) -> list[Array]:
        """Return the arrays as a flat list."""
        return [x for x in operands[:-1] if x is not None] + jax.tree.leaves(operands.cache)


def score(problem: Problem, s: Array, slope: Any, distance: Any) -> Array:
    """Return logits from scaled products: capped, then lowered by slopes."""
    if problem.soft_cap is not None:
        s = problem.soft_cap * jnp.tanh(s / problem.soft_cap)
    return s if slope is None else s - slope * distance


def seen(problem: Problem, distance: Any, queries: int = 1) -> Any:
    """Return which keys are seen, by how far before the last of some queries they lie."""
    there = distance >= 0
    if problem.window is None:
        return there
    return there & (distance < problem.window + queries - 1)
