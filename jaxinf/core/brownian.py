"""Noise that agrees across grids: increments of one Brownian path a sample."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxinf.core.noise import Noise, mixed, normal
from jaxinf.core.record import record, static
from jaxinf.core.types import Key, Leaf, Scalar


@record
class Brownian:
    """Makes increments that agree across grids: see :func:`brownian`."""

    t_max: Leaf
    depth: int = static()

    def at(self, key: Key, step: Leaf, index: Leaf, shape: tuple[int, ...], dtype: Any) -> Noise:
        """Return a sample's noise; it does not depend on the step."""
        return BrownianPath(key, index, self.t_max, self.depth, shape, dtype)


@record
class BrownianPath:
    """One sample's Brownian path W on [0, t_max]; an increment is (W_t - W_s) / sqrt(t - s)."""

    key: Leaf
    index: Leaf
    t_max: Leaf
    depth: int = static()
    shape: tuple[int, ...] = static()
    dtype: Leaf = static()

    def increment(self, t: Scalar, s: Scalar) -> Array:
        """Return the path's increment between two times, of unit variance."""
        apart = jnp.abs(jnp.asarray(t - s))
        return (self.value(t) - self.value(s)) / jnp.sqrt(apart).astype(self.dtype)

    def value(self, t: Scalar) -> Array:
        """Return W(t), by bisection: the middle of a bridge is drawn down to the last interval."""
        words = jax.random.key_data(self.key)
        words = words.at[-1].set(words[-1] ^ jnp.asarray(self.index, jnp.uint32))
        key = jax.random.wrap_key_data(words, impl=jax.random.key_impl(self.key))
        last = jnp.sqrt(jnp.asarray(self.t_max)).astype(self.dtype)
        end = last * normal(_child(key, 0), self.shape, self.dtype)
        place = jnp.clip(jnp.asarray(t) / self.t_max, 0, 1)

        def halve(_: Array, carry: Any) -> Any:
            node, place, width, low, high = carry
            bridge = normal(_child(key, node), self.shape, self.dtype) * jnp.sqrt(width / 4)
            middle = (low + high) / 2 + bridge.astype(self.dtype)
            right = place >= 0.5
            low, high = jnp.where(right, middle, low), jnp.where(right, high, middle)
            return 2 * node + right, 2 * place - right, width / 2, low, high

        start = (jnp.uint32(1), place, jnp.asarray(self.t_max, place.dtype), jnp.zeros_like(end))
        _, place, _, low, high = lax.fori_loop(0, self.depth, halve, (*start, end))
        return low + (high - low) * place.astype(self.dtype)


def brownian(t_max: Scalar, depth: int = 16) -> Brownian:
    """Noise that is one Brownian path a sample, so that 20 and 40 steps see the same one.

    The path is drawn by bisection of [0, t_max] and is linear between its 2^depth + 1 nodes; a
    step much longer than t_max / 2^depth has increments of unit variance, a shorter one has less.
    An increment costs 2 depth + 2 draws in place of one.

    Args:
      t_max: the last time, ``process.t_max``.
      depth: halvings, 1 to 30.

    Returns:
      What ``sampler.sample`` takes as ``noise``.

    Raises:
      ValueError: for a depth outside 1 ... 30.
    """
    if not 1 <= depth <= 30:
        raise ValueError(f"depth must be 1 ... 30, got {depth}; 16 resolves 65,536 intervals")
    return Brownian(t_max, depth)


def _child(key: Key, node: Leaf) -> Key:
    """Return the key of a node of the tree of halvings."""
    words = jax.random.key_data(key)
    words = words.at[0].set(words[0] ^ mixed(mixed(jnp.asarray(node, jnp.uint32))))
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
