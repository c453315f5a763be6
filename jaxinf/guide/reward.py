"""Rewards of clean examples: functions, or records that are called as functions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import PyTree, record, static

Reward = Callable[[Array, Any], Any]
"""(x_0, cond) -> a number, for one example."""


@record
class Given:
    """A function of (x_0, cond) as a record without numbers."""

    function: Reward = static()

    def __call__(self, x0: Array, cond: PyTree) -> Any:
        """Return the function's value."""
        return self.function(x0, cond)


def as_record(reward: Any) -> Any:
    """Return a reward as a pytree: a function is part of its type, a record keeps its leaves.

    Args:
      reward: a function, or a pytree that is called as ``reward(x0, cond)``.

    Raises:
      TypeError: for what cannot be called.
    """
    if not callable(reward):
        raise TypeError(
            f"a reward is called as reward(x0, cond) -> number, got {type(reward).__name__}; "
            "numbers that it needs belong in cond, or in a core.record with __call__"
        )
    return Given(reward) if jax.tree_util.all_leaves([reward]) else reward


def value_of(reward: Any, x0: Array, cond: PyTree) -> Float[Array, ""]:
    """Return one example's reward as a floating number.

    Raises:
      ValueError: for a reward of another shape than ().
    """
    value = jnp.asarray(reward(x0, cond))
    if value.shape != ():
        raise ValueError(
            f"a reward must be one number for one example, got shape {value.shape}; it is called "
            "without a batch axis: sum or average over the example's own axes"
        )
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))
