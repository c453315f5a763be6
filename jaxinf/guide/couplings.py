"""Couplings of two laws: where the pairs come from that Markovian fitting learns from."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, Scalar, normal, record, root


@runtime_checkable
class Coupling(Protocol):
    """A joint law of a pair of vectors."""

    def sample(self, key: Key) -> tuple[Array, Array]:
        """Draw (x_0, x_1)."""
        ...


@record
class Independent:
    """x_0 and x_1 independent of each other: the start of DSBM-IMF and of D-IMF."""

    start: Leaf
    end: Leaf

    def sample(self, key: Key) -> tuple[Array, Array]:
        """Draw (x_0, x_1)."""
        first, second = jax.random.split(key)
        return self.start.sample(first), self.end.sample(second)


@record
class Noised:
    """x_1 = x_0 + eps^(1/2) z: the reference from the start on, from which DSBM-IPF starts."""

    start: Leaf
    eps: Leaf

    def sample(self, key: Key) -> tuple[Array, Array]:
        """Draw (x_0, x_1)."""
        first, second = jax.random.split(key)
        x = self.start.sample(first)
        return x, x + root(self.eps) * jax.random.normal(second, x.shape, x.dtype)


@record
class Walked:
    """x_1 is where a Markov process comes to that starts from x_0, drawn from a law."""

    law: Leaf
    projection: Leaf
    """With ``steps``, and ``step(params, key, k, x)`` from time k / steps to the next."""
    params: Leaf

    def sample(self, key: Key) -> tuple[Array, Array]:
        """Draw (x_0, x_1)."""
        first, walk = jax.random.split(key)
        x = self.law.sample(first)
        return x, self.walk(walk, x)

    def walk(self, key: Key, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Draw x_1 given x_0."""
        return self._scan(key, x)[0]

    def path(self, key: Key, x: Float[Array, " d"]) -> Float[Array, "times d"]:
        """Draw the process at all times k / steps given x_0, which is the first."""
        return jnp.concatenate([x[None], self._scan(key, x, keep=True)[1]])

    def _scan(self, key: Key, x: Array, keep: bool = False) -> Any:
        """Return where the walk ends, and all places after the first."""

        def step(x: Array, row: tuple[Key, Array]) -> tuple[Array, Any]:
            x = self.projection.step(self.params, *row, x)
            return x, x if keep else None

        steps = self.projection.steps
        return jax.lax.scan(step, x, (jax.random.split(key, steps), jnp.arange(steps)))


@record
class Reversed:
    """The same pairs, the end first."""

    coupling: Leaf

    def sample(self, key: Key) -> tuple[Array, Array]:
        """Draw (x_1, x_0)."""
        first, second = self.coupling.sample(key)
        return second, first


@record
class Chosen:
    """One of several couplings, by its number."""

    which: Leaf
    couplings: Leaf
    """A tuple."""

    def sample(self, key: Key) -> tuple[Array, Array]:
        """Draw a pair of the one that was chosen."""
        return jax.lax.switch(self.which, [one.sample for one in self.couplings], key)


def brownian_bridge(
    key: Key,
    x: Float[Array, " d"],
    end: Float[Array, " d"],
    t: Scalar,
    s: Scalar,
    eps: Scalar,
) -> Float[Array, " d"]:
    r"""Draw a Brownian bridge at a time, from its place at an earlier one and at its end.

    .. math:: x_s \sim N\Bigl(x_t + \tfrac{s - t}{1 - t} (x_1 - x_t),
              \epsilon \tfrac{(s - t)(1 - s)}{1 - t} I\Bigr), \qquad t \le s \le 1, \; t < 1

    Args:
      key: a typed key.
      x: x_t, shape (d,).
      end: x_1, shape (d,).
      t: the earlier time.
      s: the time of the draw; at 1 it is the end itself.
      eps: variance of the Brownian motion in a unit of time.

    Returns:
      x_s, shape (d,).
    """
    share = (s - t) / (1 - t)
    scale = root(jnp.asarray(eps * share * (1 - s), x.dtype))
    return x + share * (end - x) + scale * normal(key, x.shape, x.dtype)
