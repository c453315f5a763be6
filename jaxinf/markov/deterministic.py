"""Functions as kernels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, PyTree, record, static
from jaxinf.core.types import Leaf
from jaxinf.markov.kernel import Exactly, Point, Pullback


@record
class Deterministic:
    """y = f(params, x)."""

    params: Leaf
    function: Callable[[Any, PyTree], PyTree] = static()

    def sample(self, key: Key, x: PyTree) -> PyTree:
        """Return f(x)."""
        return self.function(self.params, x)

    def at(self, x: Float[Array, " d"]) -> tuple[Array, Array]:
        """Return f(x) and a root of no noise."""
        y = self.function(self.params, x)
        return y, jnp.zeros((jnp.size(y), 0), y.dtype)

    def log_prob(self, x: PyTree, y: PyTree) -> Float[Array, ""]:
        """Return 0 where y is f(x) and -inf elsewhere: the density by counting."""
        same = jax.tree.map(lambda a, b: jnp.all(a == b), self.function(self.params, x), y)
        return jnp.where(jnp.all(jnp.stack(jax.tree.leaves(same))), 0.0, -jnp.inf)

    def tilt(self, x: PyTree, message: Any) -> tuple["Point", Float[Array, ""]]:
        """Return the atom at f(x), and log h(f(x))."""
        y = self.function(self.params, x)
        return Point(y), message(y)

    def pullback(self, message: Any) -> Pullback:
        """Carry a message back: h to h(f(x))."""
        return Pullback(Through(message, self), Exactly(self))


@record
class Through:
    """The message x -> log h(f(x))."""

    message: Leaf
    kernel: Leaf

    def __call__(self, x: PyTree) -> Float[Array, ""]:
        """Return log h(f(x))."""
        return self.message(self.kernel.function(self.kernel.params, x))

    def times(self, other: Any) -> "Times":
        """Return the product with any message."""
        return Times(self, other)


@record
class Times:
    """The product of two messages of any kinds."""

    first: Leaf
    second: Leaf

    def __call__(self, x: PyTree) -> Float[Array, ""]:
        """Return log h(x) + log g(x)."""
        return self.first(x) + self.second(x)

    def times(self, other: Any) -> "Times":
        """Return the product with one more."""
        return Times(self, other)


def deterministic(function: Callable[[Any, PyTree], PyTree], params: PyTree = ()) -> Deterministic:
    """The kernel from x to function(params, x).

    Args:
      function: of (params, x).
      params: what it takes beside: numbers in it recompile nothing.

    Returns:
      A kernel with ``tilt``: a message h is carried back to h(f(x)).
    """
    return Deterministic(params, function)
