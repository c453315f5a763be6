"""What a guided denoiser is at one noisy example: what proposes, what is the target, the twist."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import PyTree, Scalar, divide
from jaxinf.sampler import tweedie


class Moments(NamedTuple):
    """A mean of the clean example, and its covariance [n, n] where a sampler asks for it."""

    mean: Array
    covariance: Any


class Evaluation(NamedTuple):
    """A guided denoiser at (x, t).

    The target's density at t is prod_i q_i^(a_i) times exp(log_twist), of which q_i's reverse
    transitions follow from the experts.
    """

    guided: Moments
    """What the sampler's step is made with."""
    experts: tuple[Moments, ...]
    exponents: tuple[Any, ...]
    log_twist: Float[Array, ""]


@runtime_checkable
class Guidance(Protocol):
    """A denoiser that was made of others, and what its target is made of."""

    def evaluate(self, x: Array, t: Scalar, cond: PyTree, full: bool) -> Evaluation:
        """Return what it is at (x, t); see :func:`evaluate`."""
        ...

    def log_final(self, x: Array) -> Float[Array, ""]:
        """Return the log of what its target at time 0 has beside powers of experts' densities."""
        ...


def evaluate(denoiser: Any, x: Array, t: Scalar, cond: PyTree, full: bool) -> Evaluation:
    """Return what a denoiser is at (x, t): its own expert, unless it was made by this room.

    Args:
      denoiser: any.
      x: a noisy example.
      t: its time.
      cond: its condition.
      full: whether covariances are asked for, at a derivative for each number of the example.
    """
    if isinstance(denoiser, Guidance):
        return denoiser.evaluate(x, t, cond, full)
    if full:
        clean = Moments(*tweedie(denoiser.process, lambda x: denoiser(x, t, cond), x, t))
    else:
        clean = Moments(denoiser(x, t, cond), None)
    return Evaluation(clean, (clean,), (1.0,), jnp.zeros((), x.dtype))


def spread(process: Any, t: Scalar, v: Array) -> Array:
    """Return (sigma^2 / alpha) C v, by which gradients of log densities move the clean example.

    Where alpha is 0 the noisy example says nothing of the clean one, and nothing is moved.
    """
    factor = divide(jnp.square(process.sigma(t)), process.alpha(t))
    return (factor * process.covariance.matvec(v)).astype(v.dtype)


def applied(matrix: Array, v: Array) -> Array:
    """Return a matrix over an example's numbers times an example."""
    return (matrix @ v.reshape(-1)).reshape(v.shape)


def log_final(denoiser: Any, x: Array) -> Float[Array, ""]:
    """Return the log of what the target at time 0 has beside powers of the experts' densities."""
    return denoiser.log_final(x) if isinstance(denoiser, Guidance) else jnp.zeros((), x.dtype)
