"""Densities between a start and a target, and how far steps go."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Diagonal, Gaussian, Key, Leaf, record, static
from jaxinf.vi.checks import check_least, check_positive
from jaxinf.vi.families import mean_field


@record
class Between:
    """The density at a step of a geometric path, a target of its own."""

    target: Leaf
    law: Leaf
    """The start."""
    share: Leaf
    """The power of the target; the start has the rest."""

    @property
    def dim(self) -> int:
        """How many numbers a position has."""
        return self.target.dim

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each number of a position."""
        return self.target.names

    def log_prior(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the start's part."""
        return (1 - self.share) * self.law.log_prob(z)

    def log_likelihood(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the target's part."""
        return self.share * self.target.log_prob(z)

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
        """Draw from the start."""
        return self.law.sample(key)


@record
class Annealing:
    """A diagonal Gaussian start, temperatures and step sizes; all are learnt."""

    mean: Leaf
    log_scale: Leaf
    log_increments: Leaf
    """Of temperatures, [steps], up to a common factor."""
    log_step: Leaf
    """Of the longest step."""
    steps: int = static()
    falling: bool = static()
    """Whether steps shorten towards the target, as a cosine squared."""

    @property
    def law(self) -> Gaussian:
        """The start."""
        return Gaussian(self.mean, Diagonal(jnp.exp(self.log_scale)))

    def temperature(self, k: Any) -> Float[Array, ""]:
        """Return by which power the target counts at a step: 0 at the start, 1 at the end."""
        whole = jnp.cumsum(jax.nn.softmax(self.log_increments))
        return jnp.concatenate([jnp.zeros(1, whole.dtype), whole[:-1], jnp.ones(1, whole.dtype)])[k]

    def step(self, k: Any) -> Float[Array, ""]:
        """Return the length in time of the step after state k; after the last, of the last."""
        k = jnp.minimum(k, self.steps - 1)
        length = jnp.exp(self.log_step)
        if not self.falling:
            return length
        share = (k / self.steps + 0.008) / 1.008
        return length * jnp.square(jnp.cos(0.5 * jnp.pi * share))

    def at(self, target: Any, k: Any) -> Between:
        """Return the density at a step."""
        return Between(target, self.law, self.temperature(k))

    def score(self, target: Any, k: Any, x: Array) -> Array:
        """Return the gradient of the log density at a step."""
        return jax.grad(self.at(target, k).log_prob)(x)


def no_control(params: Any, x: Array, t: Any) -> Array:
    """Return zeros."""
    del params, t
    return jnp.zeros_like(x)


def check_sizes(dim: int, steps: int, scale: float) -> None:
    """Raise for sizes that no path has."""
    check_least(dim=dim, steps=steps)
    check_positive("scale", scale)


def annealing(
    dim: int,
    steps: int,
    *,
    mean: Any = 0.0,
    scale: Any = 1.0,
    step: float = 0.1,
    falling: bool = True,
) -> Annealing:
    r"""The geometric path from a Gaussian to a target.

    .. math:: \log \pi_k(x) = (1 - \beta_k) \log q_0(x) + \beta_k \log \pi(x)

    Args:
      dim: of the target.
      steps: K.
      mean: of the start.
      scale: standard deviations of the start: with ``mean`` those of a fitted
        :func:`mean_field`, say.
      step: the longest step in time.
      falling: whether steps shorten towards the target.

    Returns:
      The path; its start, temperatures and step length are leaves, to be learnt.

    Raises:
      ValueError: for a dimension or a number of steps below 1, and lengths that are not positive.
    """
    check_least(steps=steps)
    check_positive("step", step)
    start = mean_field(dim, mean=mean, scale=scale)
    return Annealing(start.mean, start.log_scale, jnp.zeros(steps), jnp.log(step), steps, falling)
