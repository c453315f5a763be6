"""Densities between a start and a target, and how far steps go."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Diagonal, Gaussian, Leaf, record, static


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

    def score(self, target: Any, k: Any, x: Array) -> Array:
        """Return the gradient of the log density at a step."""
        b = self.temperature(k)
        own = jax.grad(self.law.log_prob)(x)
        return b * jax.grad(target.log_prob)(x) + (1 - b) * own


def check_sizes(dim: int, steps: int, scale: float) -> None:
    """Raise for sizes that no path has."""
    if dim < 1 or steps < 1:
        raise ValueError(f"dim and steps must be at least 1, got {dim} and {steps}.")
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}.")


def annealing(
    dim: int, steps: int, *, scale: float = 1.0, step: float = 0.1, falling: bool = True
) -> Annealing:
    r"""The geometric path from a Gaussian to a target.

    .. math:: \log \pi_k(x) = (1 - \beta_k) \log q_0(x) + \beta_k \log \pi(x)

    Args:
      dim: of the target.
      steps: K.
      scale: of the start's standard deviations.
      step: the longest step in time.
      falling: whether steps shorten towards the target.

    Returns:
      The path; its start, temperatures and step length are leaves, to be learnt.

    Raises:
      ValueError: for a dimension or a number of steps below 1, and lengths that are not positive.
    """
    check_sizes(dim, steps, scale)
    if step <= 0:
        raise ValueError(f"step must be positive, got {step}.")
    zeros = jnp.zeros(dim)
    return Annealing(
        zeros, jnp.full(dim, jnp.log(scale)), jnp.zeros(steps), jnp.log(step), steps, falling
    )
