"""Densities between a start and a target, and how far steps go."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Diagonal, Gaussian, Leaf, record, static
from jaxinf.target import Density, density
from jaxinf.vi.checks import check_least, check_positive
from jaxinf.vi.families import mean_field
from jaxinf.vi.paths import Kernels


def _between(data: Any, x: Array) -> Float[Array, ""]:
    """Return the log density of a geometric path."""
    end, law, share = data
    return (1 - share) * law.log_prob(x) + share * end.log_prob(x)


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

    def temperature(self, k: Any) -> Float[Array, "*k"]:
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

    def at(self, target: Any, k: Any) -> Density:
        """Return the density at a step, a target of its own."""
        return density(_between, self.mean, (target, self.law, self.temperature(k)))

    def score(self, target: Any, k: Any, x: Array) -> Array:
        """Return the gradient of the log density at a step, or at several: leading axes of k."""
        b = self.temperature(k)
        ends = jax.grad(target.log_prob)(x), jax.grad(self.law.log_prob)(x)
        return jnp.tensordot(b, ends[0], 0) + jnp.tensordot(1 - b, ends[1], 0)


@record
class Annealed(Kernels):
    """Kernels whose ``path`` is an :class:`Annealing`, and whose states are positions."""

    path: Annealing

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return self.path.steps

    def start(self, target: Any) -> Any:
        """Return the Gaussian start."""
        del target
        return self.path.law

    def log_between(self, target: Any, k: Any, state: Any) -> Float[Array, ""]:
        """Return the log density that the path has at a step."""
        return self.path.at(target, k).log_prob(state)


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
