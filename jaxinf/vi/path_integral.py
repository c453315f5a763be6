"""Brownian motion from one point, steered to a target."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Diagonal, Gaussian, Key, Leaf, log_prob, record, static
from jaxinf.vi.annealing import check_sizes
from jaxinf.vi.paths import Kernels


@record
class Pinned:
    """A Gaussian that may be a point, where its log density counts as 0."""

    mean: Leaf
    scale: Leaf

    def sample(self, key: Key) -> Array:
        """Draw."""
        return self.mean + self.scale * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def log_prob(self, x: Array) -> Float[Array, ""]:
        """Return the log density."""
        there = self.scale > 0
        safe = jnp.where(there, self.scale, 1.0)
        return jnp.where(there, log_prob(Diagonal(safe), x - self.mean), 0.0)


@record
class PathIntegralSampler(Kernels):
    """See :func:`path_integral_sampler`."""

    params: Leaf
    guidance: Leaf
    """[steps + 1], of the target's score in the drift."""
    scale: Leaf
    apply: Callable[..., Any] = static()
    dim: int = static()
    steps: int = static()

    def start(self, target: Any) -> Pinned:
        """Return the point 0."""
        del target
        return Pinned(jnp.zeros(self.dim), jnp.zeros(()))

    def around(self, target: Any, k: Any, state: Array) -> tuple[Pinned, Gaussian]:
        """Return a Brownian bridge's step back to 0, and a step ahead."""
        h = 1 / self.steps
        share = jnp.maximum(k - 1, 0) / jnp.maximum(k, 1)
        back = Pinned(share * state, self.scale * jnp.sqrt(h * share))
        score = jax.grad(target.log_prob)(state)
        drift = self.apply(self.params, state, k / self.steps) + self.guidance[k] * score
        noise = Diagonal(self.scale * jnp.sqrt(h))
        return back, Gaussian(state + h * jnp.square(self.scale) * drift, noise)


def path_integral_sampler(
    dim: int, steps: int, apply: Callable[..., Any], params: Any, *, scale: float = 1.0
) -> PathIntegralSampler:
    r"""The path integral sampler.

    .. math:: F_k = N\bigl(x + h \sigma^2 (u(x, t_k) + g_k \nabla \log \pi(x)), h \sigma^2 I\bigr),
              \qquad B_k = N\Bigl(\tfrac{t_k}{t_{k+1}} x', h \sigma^2 \tfrac{t_k}{t_{k+1}} I\Bigr)

    from 0 in unit time: the reference is Brownian motion, whose bridge leads every end back to 0.

    Args:
      dim: of the target.
      steps: K.
      apply: u, ``apply(params, x, t)`` of one state and a time in [0, 1].
      params: its parameters.
      scale: sigma, about as wide as the target.

    Returns:
      The kernels, for :func:`jaxinf.vi.path_measures`; sigma and g are learnt too.

    Raises:
      ValueError: for sizes below 1 and a scale that is not positive.

    Reference:
      Q. Zhang and Y. Chen, "Path integral sampler: a stochastic control approach for sampling"
      (2022), eqs. 7, 15 and 18.
    """
    check_sizes(dim, steps, scale)
    guidance = jnp.zeros(steps + 1)
    return PathIntegralSampler(params, guidance, jnp.asarray(scale), apply, dim, steps)
