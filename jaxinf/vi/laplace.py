"""Laplace's approximation."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxinf.core import Dense, Gaussian
from jaxinf.vi.checks import check_least, check_positive, check_target

POLISH = 5
"""Newton's steps at the end, each of them taken where it makes the gradient smaller."""


class LaplaceInfo(NamedTuple):
    """What the search and the curvature at its end were."""

    gradient: Float[Array, ""]
    """Norm of the gradient of log pi at the mode."""
    converged: Bool[Array, ""]
    """Whether it is at most the tolerance."""
    steps: Int[Array, ""]
    """Of L-BFGS."""
    positive_definite: Bool[Array, ""]
    """Of the negative Hessian. Where it is not, the law has its eigenvalues' magnitudes: the point
    is no strict maximum, and another start or target.mapped(...) mends it."""
    smallest: Float[Array, ""]
    """Smallest eigenvalue of the negative Hessian."""


class Laplace(NamedTuple):
    """What :func:`laplace` found."""

    law: Gaussian
    """Its mean is the mode; its covariance is in square-root form."""
    log_evidence: Float[Array, ""]
    """The estimate of log Z, in nats; NaN where the Hessian was mended."""
    info: LaplaceInfo


def laplace(
    target: Any, start: Float[Array, " dim"], *, steps: int = 200, tolerance: Any = None
) -> Laplace:
    r"""The Gaussian of a mode and of its curvature.

    .. math::
       \hat z = \arg\max \log \pi, \quad H = -\nabla^2 \log \pi(\hat z), \quad
       q = N(\hat z, H^{-1}), \quad
       \log \hat Z = \log \pi(\hat z) + \tfrac{d}{2} \log 2 \pi - \tfrac12 \log \det H

    The mode is found by L-BFGS with a line search and polished by Newton's steps, in one compiled
    program for a target's kind and shapes.

    Args:
      target: with ``log_prob(z)``, twice differentiable.
      start: a position (dim,).
      steps: of L-BFGS, at most.
      tolerance: of the gradient's norm, at which the search ends; by default the square root of the
        machine's epsilon.

    Returns:
      :class:`Laplace`; exact where the target is an unnormalised Gaussian.

    Raises:
      TypeError: for a target without a density or a gradient.
      ValueError: for a start of another dimension, no steps, and a tolerance that is not positive.

    Reference:
      L. Tierney and J. B. Kadane, "Accurate approximations for posterior moments and marginal
      densities" (1986), section 2.

    Example:
      ``vi.laplace(posterior, jnp.zeros(posterior.dim)).law.sample(key)``
    """
    start = jnp.asarray(start, jnp.result_type(start, float))
    check_target(target, start)
    check_least(steps=steps)
    tolerance = math.sqrt(jnp.finfo(start.dtype).eps) if tolerance is None else tolerance
    check_positive("tolerance", tolerance)
    return _laplace(target, start, tolerance, steps)


def inverse_factor(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    r"""Return the lower triangular L with :math:`L L^T = A^{-1}`, by one triangular solve.

    With :math:`A = U U^T` for an upper triangular U, L is :math:`U^{-T}`.
    """
    upper = jnp.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return jax.scipy.linalg.solve_triangular(upper, eye, trans=1)


@partial(jax.jit, static_argnames="steps")
def _laplace(target: Any, start: Array, tolerance: Any, steps: int) -> Laplace:
    """See :func:`laplace`."""

    def potential(z: Array) -> Array:
        return -target.log_prob(z)

    mode, count = _search(potential, start, tolerance, steps)
    slope = jax.grad(potential)

    def newton(z: Array, _: None) -> tuple[Array, None]:
        root = jnp.linalg.cholesky(jax.hessian(potential)(z))
        moved = z - jax.scipy.linalg.cho_solve((root, True), slope(z))
        better = jnp.linalg.norm(slope(moved)) < jnp.linalg.norm(slope(z))
        return jnp.where(better, moved, z), None

    mode, _ = jax.lax.scan(newton, mode, length=POLISH)
    hessian = jax.hessian(potential)(mode)
    hessian = (hessian + hessian.T) / 2
    values, vectors = jnp.linalg.eigh(hessian)
    least = values.size * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    positive = values[0] > least
    mended = (vectors * jnp.maximum(jnp.abs(values), least)[None]) @ vectors.T
    factor = inverse_factor(jnp.where(positive, hessian, mended))
    half = jnp.sum(jnp.log(jnp.diagonal(factor)))
    evidence = -potential(mode) + 0.5 * mode.size * math.log(2 * math.pi) + half
    norm = jnp.linalg.norm(slope(mode))
    info = LaplaceInfo(norm, norm <= tolerance, count, positive, values[0])
    law = Gaussian(mode, Dense(factor))
    return Laplace(law, jnp.where(positive, evidence, jnp.nan), info)


def _search(potential: Any, start: Array, tolerance: Any, steps: int) -> tuple[Array, Array]:
    """Return the last finite point of L-BFGS, and its steps."""
    optimiser = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(potential)

    def on(held: Any) -> Array:
        _, _, count, norm = held
        return (count < steps) & (norm > tolerance)

    def body(held: Any) -> Any:
        z, state, count, _ = held
        value, grad = value_and_grad(z, state=state)
        found: Any = optimiser.update(grad, state, z, value=value, grad=grad, value_fn=potential)
        updates, new = found
        moved = z + updates
        norm = jnp.linalg.norm(optax.tree.get(new, "grad"))
        fine = jnp.all(jnp.isfinite(moved)) & jnp.isfinite(norm)
        still = fine & jnp.any(moved != z)
        return jnp.where(fine, moved, z), new, count + 1, jnp.where(still, norm, 0)

    norm, none = jnp.linalg.norm(jax.grad(potential)(start)), jnp.zeros((), jnp.int32)
    z, _, count, _ = jax.lax.while_loop(on, body, (start, optimiser.init(start), none, norm))
    return z, count
