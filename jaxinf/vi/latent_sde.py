"""Variational inference for stochastic differential equations with fractional noise."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Noise, PyTree, Scalar, is_concrete, prepend, record, static
from jaxinf.core.types import Leaf
from jaxinf.vi.fractional import FractionalBrownian


@record
class LatentSDE:
    """See :func:`latent_sde`."""

    driver: Leaf
    params: Leaf
    drift: Callable[[Any, Array, Array], Array] = static()
    dispersion: Callable[[Any, Array, Array], Array] = static()
    control: Callable[[Any, Array, Array, Array], Array] = static()


class LatentSDEBound(NamedTuple):
    """What :func:`latent_sde_elbo` found, in nats: one draw, whose expectation is the bound."""

    bound: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    cost: Float[Array, ""]
    """Half the integral of |u|^2: the divergence of the paths from the prior's."""
    log_weight: Float[Array, ""]
    """The bound less the integral of u dW: of the same expectation, of less spread where the
    control is good, and constant at the posterior; its exponential averages to the evidence."""
    path: Float[Array, "n d"]
    """X at the times."""


def latent_sde(
    driver: FractionalBrownian,
    drift: Callable[[Any, Scalar, Array], Array],
    dispersion: Callable[[Any, Scalar, Array], Array],
    control: Callable[[Any, Scalar, Array, Array], Array],
    params: PyTree = (),
) -> LatentSDE:
    r"""A stochastic differential equation with fractional noise, and a controlled copy of it.

    .. math:: dX &= b(X, t)\, dt + \sigma(X, t)\, d\hat B, \qquad
              d\hat B = \sum_k \omega_k\, dY_k \\
              dY_k &= (-\gamma_k Y_k + u(X, Y, t))\, dt + dW

    The prior has u = 0; the posterior has a control.

    Args:
      driver: from :func:`fractional_brownian`.
      drift: b, ``(params, t, x) -> (d,)``.
      dispersion: sigma, ``(params, t, x) -> (d, m)``, for m independent drivers.
      control: u, ``(params, t, x, y) -> (m,)``, with y of shape (m, K).
      params: what all three take.

    Returns:
      The pair of processes, for :func:`latent_sde_elbo`.

    Reference:
      R. Daems, M. Opper, G. Crevecoeur and T. Birdal, "Variational inference for SDEs driven by
      fractional noise" (2024), the augmented equation.
    """
    return LatentSDE(driver, params, drift, dispersion, control)


def latent_sde_elbo(
    noise: Noise,
    sde: LatentSDE,
    start: Float[Array, " d"],
    times: Float[Array, " n"],
    log_likelihood: Callable[[Any, Float[Array, "n d"]], Array],
) -> LatentSDEBound:
    r"""One draw of the evidence lower bound of a controlled equation.

    .. math:: L = E_u\Bigl[\log p(\text{data} \mid X) - \tfrac12 \int_0^T |u(X, Y, t)|^2 dt\Bigr]

    by Euler and Maruyama's steps; for the equation so discretised it is a bound exactly.

    Args:
      noise: white, ``increment(t, s)`` of shape (m,): ``core.Independent``, or a path of
        ``core.brownian`` that agrees across grids. Many draws: ``jax.vmap`` over its keys.
      sde: from :func:`latent_sde`.
      start: X at the first time.
      times: ascending; the drivers are 0 at the first.
      log_likelihood: ``(params, path) -> log p(data | X)`` of X at the times, in nats.

    Returns:
      :class:`LatentSDEBound`, differentiable in the parameters, the start and the Hurst index.

    Raises:
      ValueError: for functions whose values have other shapes, and for concrete times that do not
        ascend or steps of which the fastest of the rates makes an unstable recursion.

    Reference:
      R. Daems, M. Opper, G. Crevecoeur and T. Birdal, "Variational inference for SDEs driven by
      fractional noise" (2024), the proposition on the evidence lower bound. Deviation: the start is
      given; a divergence of its law is the caller's to add.
    """
    start, times = jnp.asarray(start), jnp.asarray(times)
    drivers = _check(noise, sde, start, times)
    driver, weights = sde.driver, sde.driver.weights

    def step(carry: Any, slot: Any) -> tuple[Any, Array]:
        x, y, cost, drawn = carry
        t, s = slot
        u, dt = sde.control(sde.params, t, x, y), s - t
        white = jnp.sqrt(dt) * noise.increment(t, s)
        dw = u * dt + white
        dy = -dt * y * driver.rates[None, :] + dw[:, None]
        moved = x + dt * sde.drift(sde.params, t, x)
        moved += sde.dispersion(sde.params, t, x) @ (dy @ weights)
        moved, y = moved.astype(x.dtype), (y + dy).astype(y.dtype)
        cost = (cost + dt * jnp.sum(jnp.square(u)) / 2).astype(cost.dtype)
        drawn = (drawn + u @ white).astype(drawn.dtype)
        return (moved, y, cost, drawn), moved

    y = jnp.zeros((drivers, driver.rates.size), start.dtype)
    zero = jnp.zeros((), start.dtype)
    (_, _, cost, drawn), later = jax.lax.scan(step, (start, y, zero, zero), (times[:-1], times[1:]))
    path = prepend(start, later)
    fit = log_likelihood(sde.params, path)
    if jnp.shape(fit) != ():
        raise ValueError(f"log_likelihood must give one number, got shape {jnp.shape(fit)}.")
    return LatentSDEBound(fit - cost, fit, cost, fit - cost - drawn, path)


def _check(noise: Noise, sde: LatentSDE, start: Array, times: Array) -> int:
    """Return the number of drivers; raise for what does not fit."""
    if start.ndim != 1 or times.ndim != 1 or times.size < 2:
        raise ValueError(
            "start must have shape (d,) and times (n,) with n at least 2, got "
            f"{start.shape} and {times.shape}."
        )
    d = start.size
    spread = jax.eval_shape(sde.dispersion, sde.params, times[0], start).shape
    if len(spread) != 2 or spread[0] != d:
        raise ValueError(f"dispersion must give shape ({d}, m), got {spread}.")
    y = jax.ShapeDtypeStruct((spread[1], sde.driver.rates.size), start.dtype)
    for name, wanted, found in (
        ("drift", (d,), jax.eval_shape(sde.drift, sde.params, times[0], start)),
        ("control", spread[1:], jax.eval_shape(sde.control, sde.params, times[0], start, y)),
        ("noise.increment", spread[1:], jax.eval_shape(noise.increment, times[0], times[1])),
    ):
        if found.shape != wanted:
            raise ValueError(f"{name} must give shape {wanted}, got {found.shape}.")
    if is_concrete((times, sde.driver.rates)):
        steps, fastest = np.diff(np.asarray(times)), float(jnp.max(sde.driver.rates))
        if not (steps > 0).all():
            raise ValueError("times must ascend.")
        if not steps.max() * fastest < 2:
            raise ValueError(
                f"steps must be below 2 / {fastest}, twice the time in which the fastest of the "
                f"drivers forgets, got one of {steps.max()}: take more steps or slower rates."
            )
    return spread[1]
