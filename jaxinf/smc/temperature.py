"""Powers of a likelihood: the target at a temperature, and which temperature comes next."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, record

LEAST = 1e-9
"""The least step of the temperature."""
HALVINGS = 20
"""Of the step's logarithm, from 20.7 to 2e-5."""


@record
class Tempered:
    r"""A target whose likelihood counts by a power: :math:`p(z) L(z)^\lambda`."""

    target: Leaf
    temperature: Leaf

    @property
    def dim(self) -> int:
        """How many numbers a position has."""
        return self.target.dim

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each number of a position."""
        return self.target.names

    def log_prior(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return log p(z)."""
        return self.target.log_prior(z)

    def log_likelihood(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return lambda log L(z)."""
        return self.temperature * self.target.log_likelihood(z)

    def log_prob(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return their sum."""
        return self.log_prior(z) + self.log_likelihood(z)

    def constrain(self, z: Float[Array, " dim"]) -> PyTree:
        """Return the values that a position stands for."""
        return self.target.constrain(z)

    def unconstrain(self, values: PyTree) -> Float[Array, " dim"]:
        """Return the position of values."""
        return self.target.unconstrain(values)

    def sample_prior(self, key: Key) -> Float[Array, " dim"]:
        """Draw a position from the prior."""
        return self.target.sample_prior(key)


def next_temperature(
    log_likelihood: Float[Array, " n"],
    log_weights: Float[Array, " n"],
    temperature: Float[Array, ""],
    effective: Leaf,
) -> Float[Array, ""]:
    r"""Return the temperature that leaves a share of the particles effective, 1 at most.

    .. math:: \frac{(\sum_i W_i w_i)^2}{\sum_i W_i w_i^2} = \rho, \qquad
              w_i = L_i^{\lambda' - \lambda}

    is solved for lambda' by bisection of the logarithm of the step. The left side is the
    conditional effective sample size over n; it is the effective sample size over n where the
    weights before, W, are equal.

    Args:
      log_likelihood: log L of each particle.
      log_weights: log W, normalised.
      temperature: lambda.
      effective: rho.

    Returns:
      lambda', above lambda where the float's spacing allows.

    Reference:
      Y. Zhou, A. Johansen and J. Aston, "Toward automatic model comparison: an adaptive sequential
      Monte Carlo approach", JCGS 2016.
    """
    # the best of them is 0: weights do not overflow, and the share does not change
    top = jnp.max(jnp.where(log_likelihood < jnp.inf, log_likelihood, -jnp.inf))
    apart = jnp.where(log_likelihood < jnp.inf, log_likelihood - top, -jnp.inf)
    weights = jnp.exp(log_weights)

    def share(step: Array) -> Array:
        w = jnp.exp(step * apart)
        return jnp.square(weights @ w) / (weights @ jnp.square(w))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        enough = share(jnp.exp(middle)) >= effective
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    rest = 1 - temperature
    ends = jnp.log(LEAST) + 0 * rest, jnp.log(rest)
    low, _ = jax.lax.fori_loop(0, HALVINGS, halve, ends)
    return jnp.where(share(rest) >= effective, 1, jnp.minimum(temperature + jnp.exp(low), 1))
