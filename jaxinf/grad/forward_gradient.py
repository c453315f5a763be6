"""Gradients by forward mode alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, check_key


def forward_gradient(
    function: Callable[[Any], Any], x: PyTree, key: Key, *, directions: int = 1
) -> tuple[Float[Array, ""], PyTree]:
    r"""Return a function's value, and an unbiased estimate of its gradient without a reverse pass.

    .. math:: g = \frac1k \sum_{i=1}^k (\nabla f(x) \cdot v_i)\, v_i, \qquad v_i \sim N(0, I)

    With k directions in n dimensions :math:`E|g - \nabla f|^2 = \frac{n + 1}{k} |\nabla f|^2`.

    Args:
      function: f, of a pytree of floats to one number.
      x: where.
      key: a typed key.
      directions: k; each costs about one run of f, and no memory for a reverse pass.

    Returns:
      f(x) and g, of x's structure.

    Raises:
      ValueError: for fewer than one direction.

    Reference:
      A. G. Baydin, B. A. Pearlmutter, D. Syme, F. Wood and P. Torr, "Gradients without
      backpropagation" (2022), eq. 1.
    """
    check_key(key)
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}.")
    leaves, structure = jax.tree.flatten(x)

    def one(key: Key) -> tuple[Array, PyTree]:
        keys = jax.random.split(key, len(leaves))
        drawn = [
            jax.random.normal(k, jnp.shape(a), jnp.result_type(a))
            for k, a in zip(keys, leaves, strict=True)
        ]
        v = structure.unflatten(drawn)
        value, slope = jax.jvp(function, (x,), (v,))
        return value, jax.tree.map(lambda a: slope * a, v)

    values, found = jax.vmap(one)(jax.random.split(key, directions))
    return values[0], jax.tree.map(lambda a: jnp.mean(a, axis=0), found)
