"""Kernels of any law: NumPyro's distributions, or whatever draws and has a density."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, PyTree, record, static
from jaxinf.core.types import Leaf


@record
class Conditional:
    """y ~ law(params, x)."""

    params: Leaf
    law: Callable[[Any, PyTree], Any] = static()

    def sample(self, key: Key, x: PyTree) -> PyTree:
        """Draw y given x."""
        return self.law(self.params, x).sample(key)

    def log_prob(self, x: PyTree, y: PyTree) -> Float[Array, ""]:
        """Return log k(y | x), in nats."""
        value = self.law(self.params, x).log_prob(y)
        if jnp.shape(value) != ():
            raise ValueError(
                f"the law of y given x must be of one state, but its log density has shape "
                f"{jnp.shape(value)}: end it with .to_event({jnp.ndim(value)})."
            )
        return value


def conditional(law: Callable[[Any, PyTree], Any], params: PyTree = ()) -> Conditional:
    """The kernel that draws y from a law made of x, a NumPyro distribution say.

    Args:
      law: of (params, x), with ``sample(key)`` and ``log_prob(y)`` for one state. Give a function
        that stays, defined at the top of a file: a new one compiles anew.
      params: what it takes beside: numbers in it recompile nothing.

    Returns:
      A kernel for particles, and with an exact kernel near it, ``markov.guide(kernel, surrogate)``,
      one that carries messages back.

    Example:
      ``conditional(lambda scale, x: dist.Laplace(jnp.tanh(x), scale).to_event(1), 0.3)``
    """
    return Conditional(params, law)
