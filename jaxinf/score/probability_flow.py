"""The probability flow of one example: the map that a score model is, and its log-determinant."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import PyTree, Scalar, Trace, carry, runge_kutta, value_and_trace
from jaxinf.process import Gaussian, convert, v, x0
from jaxinf.score.denoiser import Denoiser

_again = partial(jax.checkpoint, prevent_cse=False)
"""Keep the arguments alone for reverse mode; the body of a scan needs no barrier."""


def transport(
    denoiser: Denoiser, x: Float[Array, "*event"], times: Float[Array, " n"], cond: PyTree = None
) -> Float[Array, "*event"]:
    """Carry one example along dx/dt = alpha' x_0 + sigma' e.

    Args:
      denoiser: the score model.
      x: the example at ``times[0]``.
      times: the grid, in either direction.
      cond: its condition.

    Returns:
      The example at ``times[-1]``.
    """

    @_again
    def field(t: Array, y: Array) -> Array:
        return _velocity(denoiser, y, t, cond)

    process = denoiser.process
    y = runge_kutta(field, x / _radius(process, times[0]), times)
    return _radius(process, times[-1]) * y


def transport_and_log_det(
    denoiser: Denoiser,
    x: Float[Array, "*event"],
    times: Float[Array, " n"],
    cond: PyTree,
    trace: Trace,
    probes: Float[Array, "probes *event"],
) -> tuple[Float[Array, "*event"], Float[Array, " estimates"]]:
    """Carry one example along the flow, and find the log-determinant of the map's Jacobian.

    It is integrated as y = x / r with r^2 = alpha^2 + sigma^2, for which
    dy/dt = (alpha sigma' - alpha' sigma) v / r^3 is finite wherever the schedule is. Reverse-mode
    gradients keep the states of the stages alone and compute the rest again.

    Args:
      denoiser: the score model.
      x: the example at ``times[0]``.
      times: the grid, in either direction.
      cond: its condition.
      trace: how the divergence is found.
      probes: its directions, the same all along the flow.

    Returns:
      The example at ``times[-1]``, and the logarithm of |det| by each of the trace's estimates.
    """
    process = denoiser.process

    @_again
    def field(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        def velocity(y: Array) -> Array:
            return _velocity(denoiser, y, t, cond)

        return value_and_trace(trace, velocity, state[0], probes)

    ends = _radius(process, times[0]), _radius(process, times[-1])
    estimates = trace.trace(jnp.zeros_like(probes), probes).shape
    start = (x / ends[0], jnp.broadcast_to(carry(x, 0.0), estimates))
    y, divergence = runge_kutta(field, start, times)
    stretch = x.size * (jnp.log(ends[1]) - jnp.log(ends[0]))
    return ends[1] * y, divergence + stretch


def _radius(process: Gaussian, t: Scalar) -> Array:
    """Return r = sqrt(alpha^2 + sigma^2)."""
    return jnp.hypot(process.alpha(t), process.sigma(t))


def _velocity(denoiser: Denoiser, y: Array, t: Array, cond: PyTree) -> Array:
    """Return dy/dt of y = x / r."""
    process = denoiser.process
    alpha, sigma, alpha_rate, sigma_rate = process.rates(t)
    r = _radius(process, t)
    spin = convert(process, t, r * y, denoiser(r * y, t, cond), x0, v)
    return (alpha * sigma_rate - alpha_rate * sigma) / r**3 * spin
