"""Diffusions as kernels: Euler's step, and the step that is exact in the linear part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import PyTree, Scalar, record, static
from jaxinf.core.types import Leaf
from jaxinf.markov.deterministic import deterministic
from jaxinf.markov.gaussian_step import GaussianStep, gaussian_step
from jaxinf.markov.linear_gaussian import LinearGaussian


@record
class Diffusion:
    """dX = drift(params, t, X) dt + dispersion(params, t, X) dW."""

    params: Leaf
    drift: Callable[[Any, Array, Array], Array] = static()
    dispersion: Callable[[Any, Array, Array], Array] = static()


def diffusion(
    drift: Callable[[Any, Scalar, Float[Array, " d"]], Float[Array, " d"]],
    dispersion: Callable[[Any, Scalar, Float[Array, " d"]], Float[Array, "d k"]],
    params: PyTree = (),
) -> Diffusion:
    """A diffusion process, in Ito's sense.

    Args:
      drift: of (params, t, x), shape (d,).
      dispersion: of (params, t, x), shape (d, k): its product with its transpose is the diffusion
        matrix.
      params: what both take: numbers in it recompile nothing.

    Returns:
      The process; :func:`euler` makes kernels of it.
    """
    return Diffusion(params, drift, dispersion)


def euler(process: Diffusion, t: Scalar, dt: Scalar) -> GaussianStep:
    r"""Euler and Maruyama's step: x + drift dt + dispersion sqrt(dt) z.

    Args:
      process: the diffusion.
      t: the time at the start.
      dt: the length of the step.

    Returns:
      The kernel, for one step; ``markov.over_time(jax.vmap(lambda t: markov.euler(p, t, dt))(ts))``
      is a path's.
    """
    params = process, jnp.asarray(t, float), jnp.asarray(dt, float)
    return gaussian_step(_euler_mean, _euler_root, params)


def _euler_mean(params: Any, x: Array) -> Array:
    """Euler's mean."""
    process, t, dt = params
    return x + dt * process.drift(process.params, t, x)


def _euler_root(params: Any, x: Array) -> Array:
    """Euler's root."""
    process, t, dt = params
    return jnp.sqrt(dt) * process.dispersion(process.params, t, x)


def linear_diffusion(
    matrix: Float[Array, "d d"],
    offset: Float[Array, " d"],
    dispersion: Float[Array, "d k"],
    dt: Scalar,
) -> LinearGaussian:
    r"""The exact transition of dX = (B X + beta) dt + sigma dW over a time dt.

    .. math:: A = e^{B\,dt}, \quad b = \int_0^{dt} e^{B s} \beta\, ds, \quad
              Q = \int_0^{dt} e^{B s} \sigma\sigma^\top e^{B^\top s} ds

    by Van Loan's block matrix exponentials.

    Args:
      matrix: B, shape (d, d).
      offset: beta, shape (d,).
      dispersion: sigma, shape (d, k).
      dt: the length of the step.

    Returns:
      An exact kernel.

    Reference: Van Loan, "Computing Integrals Involving the Matrix Exponential" (1978).
    """
    d = offset.size
    zeros = jnp.zeros((d, d), matrix.dtype)
    noise = jax.scipy.linalg.expm(
        dt * jnp.block([[-matrix, dispersion @ dispersion.T], [zeros, matrix.T]])
    )
    step = noise[d:, d:].T
    covariance = step @ noise[:d, d:]
    affine = jnp.block([[matrix, offset[:, None]], [jnp.zeros((1, d + 1), matrix.dtype)]])
    moved = jax.scipy.linalg.expm(dt * affine)
    values, vectors = jnp.linalg.eigh((covariance + covariance.T) / 2)
    return LinearGaussian(step, moved[:d, d], vectors * jnp.sqrt(jnp.maximum(values, 0))[None])


def semilinear(
    matrix: Float[Array, "d d"],
    rest: Callable[[Any, Float[Array, " d"]], Float[Array, " d"]],
    dispersion: Float[Array, "d k"],
    dt: Scalar,
    params: PyTree = (),
) -> GaussianStep:
    r"""The exponential Euler step of dX = (B X + rest(X)) dt + sigma dW: exact where rest is 0.

    .. math:: y = e^{B\,dt} x + \int_0^{dt} e^{B s} ds \; \text{rest}(x) + N(0, Q)

    Args:
      matrix: B, shape (d, d).
      rest: of (params, x), shape (d,): what the linear part leaves of the drift.
      dispersion: sigma, shape (d, k).
      dt: the length of the step.
      params: what ``rest`` takes.

    Returns:
      The kernel.
    """
    d = matrix.shape[0]
    linear = linear_diffusion(matrix, jnp.zeros(d, matrix.dtype), dispersion, dt)
    zero = jnp.zeros((d, 1), matrix.dtype)
    weights = jax.vmap(
        lambda e: linear_diffusion(matrix, e, zero, dt).offset, in_axes=1, out_axes=1
    )(jnp.eye(d, dtype=matrix.dtype))
    left = deterministic(rest, params)
    return gaussian_step(_semilinear_mean, _semilinear_root, (linear, weights, left))


def _semilinear_mean(params: Any, x: Array) -> Array:
    """The exponential Euler step's mean."""
    linear, weights, left = params
    return linear.matrix @ x + weights @ left.at(x)[0]


def _semilinear_root(params: Any, x: Array) -> Array:
    """The exponential Euler step's root."""
    return params[0].root
