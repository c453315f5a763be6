"""Log densities by the probability-flow equation."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import (
    Exact,
    Key,
    PyTree,
    Trace,
    batch_vmap,
    carry,
    check_batch,
    check_key,
    exact,
    is_concrete,
)
from jaxinf.sampler import Plan
from jaxinf.score.denoiser import Denoiser
from jaxinf.score.probability_flow import transport_and_log_det


class LogDensityInfo(NamedTuple):
    """What an evaluation tells, for each example."""

    standard_error: Float[Array, " batch"]
    """Of the trace estimate, in nats: 0 for an exact trace, NaN for a single probe."""
    x_T: Float[Array, "batch *event"]
    """Where the flow carries the example at t_max."""


def log_density(
    key: Key,
    denoiser: Denoiser,
    x: Float[Array, "batch *event"],
    cond: PyTree = None,
    *,
    plan: Plan,
    trace: Trace | None = None,
    prior: Any = None,
) -> tuple[Float[Array, " batch"], LogDensityInfo]:
    """Log density of a score model at t_min, by the probability-flow equation.

    log p_{t_min}(x) = log p_T(x_T) + int div u dt along dx/dt = u(x, t) = alpha' x_0 + sigma' e,
    by the classical Runge-Kutta method. It is differentiable in the example and the denoiser.

    Args:
      key: for the probes; sample i's depend on it and on i alone.
      denoiser: the score model.
      x: examples at t_min (data, to within the noise at t_min), floating.
      cond: conditions with the batch's leading axis.
      plan: the times to integrate over, ending at t_min, ``sampler.uniform(process, 100,
        end=process.t_min)`` say (``sampler.karras`` for ``process.edm()``). The denoiser is called
        four times a step, and the error falls as the fourth power of the steps.
      trace: how the divergence is found: ``exact()`` (default; as many derivatives as the example
        has numbers) or ``hutchinson(probes)``.
      prior: the law at t_max, a pytree with ``log_prob(x)`` for one example; by default the
        process's reference, N(0, sigma^2 C).

    Returns:
      Log densities in nats, shape (batch,), and :class:`LogDensityInfo`.

    Raises:
      TypeError: for a raw key or examples that are not floating.
      ValueError: for an empty batch, or a plan that ends at time 0, where there is no density.

    Reference:
      Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021,
      equation 39.
    """
    check_key(key)
    x = jnp.asarray(x)
    check_batch(x, cond)
    process = denoiser.process
    check_end(plan)
    trace = exact() if trace is None else trace
    prior = process.prior() if prior is None else prior
    if not hasattr(prior, "log_prob"):
        raise TypeError(
            f"prior must be a law with log_prob(x), got {type(prior).__name__}; "
            "process.marginal(law, process.t_max) is the exact one for data of a known law"
        )
    return _log_density(key, denoiser, x, cond, trace, plan, prior)


def check_end(plan: Plan) -> None:
    """Raise for a plan that ends where a score model has no density."""
    if is_concrete(plan) and not float(plan.times[-1]) > 0:
        raise ValueError(
            "there is no density at time 0: end the plan at process.t_min, as in "
            "sampler.karras(process, steps, end=process.t_min)"
        )


@jax.jit
def _log_density(
    key: Key,
    denoiser: Any,
    x: Array,
    cond: PyTree,
    trace: Trace,
    plan: Plan,
    prior: Any,
) -> tuple[Array, LogDensityInfo]:
    times = jnp.asarray(plan.times, x.dtype)[::-1]

    def one(key: Key, x: Array, cond: PyTree) -> tuple[Array, Array, Array]:
        # under shard_map the directions vary over the axes that the example varies over
        probes = trace.probes(key, x) + carry(x, 0.0)
        x_T, log_dets = transport_and_log_det(denoiser, x, times, cond, trace, probes)
        values = prior.log_prob(x_T) + log_dets
        count = values.shape[0]
        if isinstance(trace, Exact):
            error = jnp.zeros_like(values[0])
        else:
            error = jnp.std(values, ddof=1) / math.sqrt(count) if count > 1 else values[0] * jnp.nan
        return jnp.mean(values), error, x_T

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
    values, errors, x_T = batch_vmap(one)(keys, x, cond)
    return values, LogDensityInfo(errors, x_T)


def bits_per_dimension(
    log_density: Float[Array, " batch"], dimensions: int, levels: int
) -> Float[Array, " batch"]:
    """Bits per dimension of data with integer levels, from densities of the dequantised data.

    bits = -(log p(y) + D log(2 / levels)) / (D log 2) for y = 2 (x + u) / levels - 1 with u uniform
    on [0, 1); its mean is an upper bound on the discrete data's.

    Args:
      log_density: log p(y) in nats, shape (batch,).
      dimensions: D, the numbers in an example.
      levels: how many integer levels the data have.

    Returns:
      Bits per dimension, shape (batch,).

    Reference:
      A note on the evaluation of generative models, Theis et al., 2016, section 3.1.
    """
    nats = log_density + dimensions * math.log(2 / levels)
    return -nats / (dimensions * math.log(2))
