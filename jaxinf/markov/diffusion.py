"""Diffusions as kernels: Euler's step, and the step that is exact in the linear part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import PyTree, Scalar, record, static
from jaxinf.core.types import Leaf
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
    params = process.params, jnp.asarray(t, float), jnp.asarray(dt, float)
    return gaussian_step(_Part(process.drift, "mean"), _Part(process.dispersion, "root"), params)


class _Part:
    """Euler's mean or root: equal for equal functions, so that kernels built anew compile once."""

    def __init__(self, function: Callable[..., Array], part: str) -> None:
        self.function, self.part = function, part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Part) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.function, self.part))

    def __call__(self, params: Any, x: Array) -> Array:
        params, t, dt = params
        value = self.function(params, t, x)
        return x + dt * value if self.part == "mean" else jnp.sqrt(dt) * value


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
    return gaussian_step(_Semilinear(rest), _root, (linear, weights, params))


class _Semilinear:
    """The exponential Euler step's mean."""

    def __init__(self, rest: Callable[..., Array]) -> None:
        self.rest = rest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Semilinear) and self.rest == other.rest

    def __hash__(self) -> int:
        return hash(self.rest)

    def __call__(self, params: Any, x: Array) -> Array:
        linear, weights, rest = params
        return linear.matrix @ x + weights @ self.rest(rest, x)


def _root(params: Any, x: Array) -> Array:
    """The exponential Euler step's root."""
    return params[0].root
