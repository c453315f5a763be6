"""What a step's network time is tuned by."""

import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Diagonal, Leaf, Scalar, is_concrete, record
from jaxinf.process import Gaussian, convert, eps, x0
from jaxinf.sampler.stepper import Denoise


@runtime_checkable
class Objective(Protocol):
    """The loss of one step of a batch."""

    def loss(
        self, process: Gaussian, denoise: Denoise, t: Scalar, x: Array, s: Scalar, y: Array
    ) -> Array:
        """Return the loss of a step that took a batch of examples from x at t to y at s.

        ``denoise(x, t)`` takes a batch.
        """
        ...


@record
class SteadyNoise:
    """E |e(y, s) - e(x, t)|^2: the network's noise is to stay what it was.

    The authors' objective, in their published program. That noise is constant along exact
    trajectories only where the data are a single point; on wider data, with an exact denoiser, it
    moves the law away from the true one.
    """

    def loss(
        self, process: Gaussian, denoise: Denoise, t: Scalar, x: Array, s: Scalar, y: Array
    ) -> Array:
        """Return the loss; constant for a step to t_min or below, where the noise is not known."""
        before = convert(process, t, x, denoise(x, t), x0, eps)
        after = convert(process, s, y, denoise(y, s), x0, eps)
        return jnp.where(s > process.t_min, jnp.mean(jnp.square(after - before)), 0.0)


@record
class MatchMoments:
    """The squared distance of means and standard deviations from the marginal's at s."""

    mean: Leaf
    variance: Leaf

    def loss(
        self, process: Gaussian, denoise: Denoise, t: Scalar, x: Array, s: Scalar, y: Array
    ) -> Array:
        """Return the loss, a mean over the example's coordinates."""
        alpha, sigma, shape = process.alpha(s), process.sigma(s), y.shape[1:]
        noise = process.covariance
        if isinstance(noise, Diagonal):
            noise = jnp.broadcast_to(jnp.square(noise.scale), shape)
        else:
            noise = jnp.diagonal(noise.dense(math.prod(shape))).reshape(shape)
        scale = jnp.sqrt(jnp.square(alpha) * self.variance + jnp.square(sigma) * noise)
        shift, stretch = jnp.mean(y, axis=0) - alpha * self.mean, jnp.std(y, axis=0) - scale
        return jnp.mean(jnp.square(shift) + jnp.square(stretch))


steady_noise = SteadyNoise()


def match_moments(mean: Float[Array, "..."], variance: Float[Array, "..."]) -> MatchMoments:
    """The objective that the sampler's moments after a step be the process's.

    The mean over coordinates of (E y - alpha m)^2 + (std y - sqrt(alpha^2 v + sigma^2 C))^2, with y
    the samples after the step to s and m, v the clean data's mean and variance.

    Args:
      mean: of the clean data, for each coordinate; ``examples.mean(0)`` say.
      variance: likewise.

    Returns:
      The objective, for ``tune``.

    Raises:
      ValueError: for shapes that differ, or a negative variance.
    """
    mean, variance = jnp.asarray(mean), jnp.asarray(variance)
    if mean.shape != variance.shape:
        raise ValueError(
            f"mean and variance must have one example's shape, got {mean.shape} and "
            f"{variance.shape}; examples.mean(0) and examples.var(0) do"
        )
    if is_concrete(variance) and not bool(jnp.all(variance >= 0)):
        raise ValueError(f"variances must not be negative, got {variance}; examples.var(0) is not")
    return MatchMoments(mean, variance)
