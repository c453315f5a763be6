"""The variational bound on the log likelihood, in continuous and in discrete time."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, PyTree, batch_vmap, carry, check_batch, check_key, is_concrete
from jaxinf.sampler import Plan
from jaxinf.score.denoiser import Denoiser
from jaxinf.score.times import log_uniform, stratified


class Bound(NamedTuple):
    """An upper bound on -log p(x_0) in nats, in its parts, one number an example."""

    prior: Float[Array, " batch"]
    """KL(q(x_T | x_0) || p(x_T))."""
    diffusion: Float[Array, " batch"]
    """The sum (or integral) of KL(q(x_s | x_t, x_0) || p(x_s | x_t))."""
    reconstruction: Float[Array, " batch"]
    """E[-log p(x_0 | x_{t_min})]."""

    @property
    def total(self) -> Float[Array, " batch"]:
        """The bound."""
        return self.prior + self.diffusion + self.reconstruction


def variational_bound(
    key: Key,
    denoiser: Denoiser,
    x: Float[Array, "batch *event"],
    cond: PyTree = None,
    *,
    plan: Plan | None = None,
    draws: int = 128,
) -> Bound:
    """Estimate the variational bound on -log p(x_0).

    In continuous time the diffusion term is 1/2 int -SNR'(t) E|x_0 - D(x_t, t)|^2 dt, in discrete
    time 1/2 sum (SNR(s) - SNR(t)) E|x_0 - D(x_t, t)|^2 over the plan's steps, with |.| in the
    metric C^-1; the prior is N(0, sigma_T^2 C) and p(x_0 | x_{t_min}) is the Gaussian
    N(x_{t_min} / alpha, sigma^2 / alpha^2 C). Both are unbiased.

    Args:
      key: for times and noise; sample i's depend on it and on i alone.
      denoiser: the score model.
      x: clean examples, floating.
      cond: conditions with the batch's leading axis.
      plan: the discrete times, ending at t_min (or later); continuous time where there is none.
      draws: in continuous time, how many times are drawn an example, evenly over log t; in discrete
        time each step is evaluated once.

    Returns:
      The bound's parts.

    Raises:
      ValueError: for an empty batch, draws < 1, or a plan that ends at time 0.

    Reference:
      Variational Diffusion Models, Kingma et al., 2021, equations 11, 13 and 17.
    """
    check_key(key)
    x = jnp.asarray(x)
    check_batch(x, cond)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if plan is not None and is_concrete(plan) and not float(plan.times[-1]) > 0:
        raise ValueError(
            "the bound is infinite for a plan that ends at time 0: end it at process.t_min, as in "
            "sampler.uniform(process, steps, end=process.t_min)"
        )
    return _bound(key, denoiser, x, cond, plan, draws)


@jax.jit(static_argnames=("draws",))
def _bound(key: Key, denoiser: Any, x: Array, cond: PyTree, plan: Plan | None, draws: int) -> Bound:
    process = denoiser.process
    if plan is None:
        first, last = process.t_min, process.t_max
    else:
        first, last = plan.times[-1], plan.times[0]
    first, last = jnp.asarray(first, x.dtype), jnp.asarray(last, x.dtype)

    def square(x: Array) -> Array:
        return jnp.sum(jnp.square(process.covariance.whiten(x)))

    def error(key: Key, x: Array, cond: PyTree, t: Array) -> Array:
        noisy, _ = process.perturb(x, jax.random.normal(key, x.shape, x.dtype), t)
        return square(x - denoiser(noisy, t, cond))

    def one(key: Key, x: Array, cond: PyTree) -> tuple[Array, Array, Array]:
        prior = jnp.square(process.alpha(last) / process.sigma(last)) * square(x) / 2
        volume = jnp.log(process.sigma(first) / process.alpha(first))
        reconstruction = x.size * (0.5 * math.log(2 * math.pi * math.e) + volume)
        reconstruction += process.covariance.log_det_sqrt(x.size)
        key_times, key_noise = jax.random.split(key)
        if plan is None:
            times, rates = stratified(key_times, log_uniform(), process, draws, x.dtype)
            weights = -jax.vmap(process.snr_rate)(times) * rates / (2 * draws)
        else:
            edges = jnp.asarray(plan.times, x.dtype)
            times = edges[:-1]
            ratios = jax.vmap(lambda t: process.alpha(t) / process.sigma(t))(edges)
            weights = jnp.diff(jnp.square(ratios)) / 2

        def add(total: Array, slot: tuple[Array, Array, Array]) -> tuple[Array, None]:
            i, t, weight = slot
            return total + weight * error(jax.random.fold_in(key_noise, i), x, cond, t), None

        slots = (jnp.arange(times.shape[0]), times, weights)
        diffusion, _ = jax.lax.scan(add, carry(x, 0.0), slots)
        return prior, diffusion, reconstruction

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
    return Bound(*batch_vmap(one)(keys, x, cond))
