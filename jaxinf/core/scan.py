"""Small parts of the drivers: carries that pass through shard_map, a fixed-grid integrator."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core.types import PyTree


def carry(x: Array, value: float) -> Array:
    """Return a scalar to start a scan's carry with, varying over the mesh axes that x varies over.

    Args:
      x: an array that the loop's body will be computed from.
      value: the number to start with.

    Returns:
      Shape (), x's dtype; under ``shard_map`` it has x's varying axes, so that the carry's type
      does not change in the loop.
    """
    # an element of x is selected from and never taken: it lends its type, and no NaN gets through
    return jnp.where(False, jnp.ravel(x)[0], jnp.asarray(value, x.dtype))


def first(tree: PyTree) -> PyTree:
    """Return the first of every leaf's leading axis: where a scan starts."""
    return jax.tree.map(lambda a: a[0], tree)


def rest(tree: PyTree) -> PyTree:
    """Return all but the first of every leaf's leading axis: what a scan goes over."""
    return jax.tree.map(lambda a: a[1:], tree)


def prepend(start: PyTree, later: PyTree) -> PyTree:
    """Return what a scan started from and what it stacked as one leading axis."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, later)


def concretely() -> AbstractContextManager[None]:
    """Compute concrete numbers now, also while a program around is being traced.

    Unlike ``jax.ensure_compile_time_eval`` it leaves the constants of programs that are traced
    within to the compiler; to run each by itself takes seconds.
    """
    return jax.core.eval_context()


def is_concrete(tree: PyTree) -> bool:
    """Whether every leaf holds values that can be checked now."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def runge_kutta(
    field: Callable[[Array, PyTree], PyTree], y: PyTree, times: Float[Array, " n"]
) -> PyTree:
    """Integrate dy/dt = field(t, y) along a grid by the classical fourth-order method.

    Args:
      field: the right-hand side, of (t, y), with y's structure.
      y: the state at ``times[0]``.
      times: the grid, in any direction.

    The four stages are a loop too, so the field is compiled once.

    Returns:
      The state at ``times[-1]``; its error falls as the fourth power of the grid's spacing.
    """
    ahead = jnp.array([0.0, 0.5, 0.5, 1.0], times.dtype)  # where each slope is taken, from the last
    share = jnp.array([1.0, 2.0, 2.0, 1.0], times.dtype) / 6

    y = jax.tree.map(jnp.asarray, y)

    def step(y: PyTree, interval: tuple[Array, Array]) -> tuple[PyTree, None]:
        t, s = interval
        h = s - t

        def stage(slopes: tuple[PyTree, PyTree], weights: tuple[Array, Array]) -> Any:
            (slope, total), (a, b) = slopes, weights
            slope = field(t + a * h, jax.tree.map(lambda y, k: y + a * h * k, y, slope))
            return (slope, jax.tree.map(lambda sum, k: sum + b * k, total, slope)), None

        zero = jax.tree.map(lambda y: jnp.broadcast_to(carry(y, 0.0), y.shape), y)
        (_, slope), _ = jax.lax.scan(stage, (zero, zero), (ahead, share))
        return jax.tree.map(lambda y, k: y + h * k, y, slope), None

    return jax.lax.scan(step, y, (times[:-1], times[1:]))[0]
