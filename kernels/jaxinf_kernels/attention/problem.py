"""What attention is asked for, apart from its arrays."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.attention.masks import Mask
from jaxinf_kernels.operation import How


class Operands(NamedTuple):
    """All arrays, each with the batch in front; an axis of one there serves all of it."""

    q: Array
    """[B, H, N, D]"""
    k: Array
    """[B, G, M, D], G dividing H: head h reads h // (H // G)."""
    v: Array
    """[B, G, M, E]"""
    bias: Array | None
    """[B, H or 1, N, M]"""
    slopes: Array | None
    """[B, H]"""
    sinks: Array | None
    """[B, H]"""
    leaves: tuple[Array, ...]
    """The mask's: [B, N], [B, M], [B, N, M] or [B]."""


@dataclass(frozen=True)
class Problem:
    """The static part: hashable, and the same for all arrays of the same kind."""

    mask: Any
    """The mask's tree, or None."""
    kinds: tuple[str, ...]
    """What the mask's leaves hold numbers for."""
    given: tuple[bool, bool, bool]
    """Whether there are bias, slopes and sinks."""
    scale: float
    soft_cap: float | None
    how: How

    def operands(self, arrays: Any) -> Operands:
        """Name the arrays of a flat list."""
        found = list(arrays)
        q, k, v = found[:3]
        rest = iter(found[3:])
        bias, slopes, sinks = (next(rest) if there else None for there in self.given)
        return Operands(q, k, v, bias, slopes, sinks, tuple(rest))

    def flat(self, operands: Operands) -> list[Array]:
        """Return the arrays as a flat list."""
        extras = [x for x in operands[3:6] if x is not None]
        return [*operands[:3], *extras, *operands.leaves]

    def shown(self, leaves: Any) -> Mask | None:
        """Return the mask with other leaves."""
        return None if self.mask is None else self.mask.unflatten(leaves)


def score(problem: Problem, s: Array, bias: Any, slope: Any, i: Any, j: Any) -> Array:
    """Return logits from scaled products: capped, then biased; i and j broadcast to s."""
    if problem.soft_cap is not None:
        s = problem.soft_cap * jnp.tanh(s / problem.soft_cap)
    if bias is not None:
        s = s + bias
    if slope is not None:
        s = s - slope * jnp.abs(i - j)
    return s


def slope_of(problem: Problem, s: Array, scaled: Array) -> Array:
    """Return the derivative of :func:`score` from the scaled products, as a factor of s."""
    if problem.soft_cap is None:
        return s
    return s * (1 - jnp.square(jnp.tanh(scaled / problem.soft_cap)))
