"""Tempered sequential Monte Carlo: from the prior to the posterior by moves of Markov chains."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Key, check_key
from jaxinf.mcmc import Kernel, Metric, dense, diagonal, hmc
from jaxinf.smc.levels import Adapt, Options, Schedule, Tempering, run_levels
from jaxinf.smc.resampling import Scheme, systematic
from jaxinf.smc.transport import Triangular
from jaxinf.target import Target


def temper(
    key: Key,
    target: Target,
    *,
    particles: int = 2000,
    kernel: Kernel | None = None,
    moves: int = 5,
    waste_free: bool = False,
    effective: float = 0.9,
    learn: Metric | Triangular | None = None,
    jitter: float = 0.3,
    resample: Scheme = systematic,
    max_levels: int = 100,
) -> Tempering:
    r"""Draw from a target and estimate its evidence, by particles that go from prior to posterior.

    .. math:: \pi_\lambda(z) \propto p(z) L(z)^\lambda, \qquad
              Z = \prod_t E_{\lambda_{t-1}}\bigl[L^{\lambda_t - \lambda_{t-1}}\bigr]

    Each level chooses the next temperature, weighs, resamples, and moves the particles by a Markov
    kernel whose metric is their weighted covariance and whose step size follows the acceptance.
    As the particles choose them, the estimate of Z is consistent, and not unbiased; :func:`anneal`
    repeats the schedule with new particles, and is. Compiled once for a target's and a kernel's
    kind and shapes; with a mesh in force the particles lie over its batch axes.

    Args:
      key: a typed key.
      target: with a prior that can be drawn from and is normalised.
      particles: how many.
      kernel: its kind, and the first step size; ``mcmc.hmc(5)`` by default.
      moves: of each particle a level.
      waste_free: whether all states of a level's chains are particles: ``particles / (moves + 1)``
        are drawn, and all states of their moves kept.
      effective: the share of particles that a new temperature leaves effective.
      learn: the metric's form: ``mcmc.dense()``, the default up to 100 numbers, ``diagonal()``, or
        :func:`triangular` for scales that differ from place to place.
      jitter: each move's step size is multiplied by exp(jitter u), u uniform in [-1, 1].
      resample: the scheme.
      max_levels: levels at most.

    Returns:
      :class:`Tempering`.

    Raises:
      ValueError: for a target without a prior to draw from, and counts and shares out of range.

    Reference:
      P. Del Moral, A. Doucet and A. Jasra, "Sequential Monte Carlo samplers", 2006;
      H.-D. Dau and N. Chopin, "Waste-free sequential Monte Carlo", 2022.
    """
    if not 0 < effective < 1:
        raise ValueError(f"effective must lie between 0 and 1, got {effective}.")
    if max_levels < 1:
        raise ValueError(f"max_levels must be at least 1, got {max_levels}.")
    kernel = hmc(5) if kernel is None else kernel
    learn = learn or (dense() if target.dim <= 100 else diagonal())
    chains = _chains(key, target, particles, moves, waste_free)
    options = Options(chains, moves, waste_free, resample, max_levels)
    return run_levels(key, target, None, Adapt(kernel, learn, effective), jitter, options)


def anneal(
    key: Key,
    target: Target,
    schedule: Schedule,
    *,
    particles: int = 2000,
    waste_free: bool = False,
    jitter: float = 0.3,
    resample: Scheme = systematic,
) -> Tempering:
    """Run :func:`temper` along a schedule that is given: the estimate of the evidence is unbiased.

    Args:
      key: a typed key; another one than that of the run that chose the schedule.
      target: as for :func:`temper`.
      schedule: ``temper(...).schedule``, or :func:`schedule`.
      particles: how many.
      waste_free: see :func:`temper`.
      jitter: see :func:`temper`.
      resample: the scheme; unbiased with every one but ``metropolis``.

    Returns:
      :class:`Tempering`.

    Raises:
      ValueError: as :func:`temper`.
    """
    levels, moves = schedule.kernel.step_size.shape
    chains = _chains(key, target, particles, moves, waste_free)
    options = Options(chains, moves, waste_free, resample, levels)
    return run_levels(key, target, schedule, None, jitter, options)


def schedule(kernel: Kernel, temperatures: Float[Array, " levels"], moves: int = 5) -> Schedule:
    """A schedule with one kernel at all temperatures.

    Args:
      kernel: its step size and metric are used as they are.
      temperatures: rising, above 0 and up to 1.
      moves: of a particle a level.

    Returns:
      The schedule.

    Raises:
      ValueError: for temperatures that do not rise to 1, and when there is no move.
    """
    found = np.asarray(temperatures)
    if (
        found.ndim != 1
        or found.size < 1
        or found[-1] != 1
        or np.any(np.diff(found, prepend=0) <= 0)
    ):
        raise ValueError(
            f"temperatures must rise from above 0 to 1, got {found}. "
            "jnp.linspace(0, 1, levels + 1)[1:] ** 3 does."
        )
    if moves < 1:
        raise ValueError(f"moves must be at least 1, got {moves}.")
    step = jnp.broadcast_to(jnp.asarray(kernel.step_size, float), moves)
    varied: Any = kernel
    varied = dataclasses.replace(varied, step_size=step)
    stacked = jax.tree.map(lambda a: jnp.broadcast_to(a, (found.size, *jnp.shape(a))), varied)
    return Schedule(jnp.asarray(found, float), stacked, jnp.asarray(found.size))


def _chains(key: Key, target: Target, particles: int, moves: int, waste_free: bool) -> int:
    """Check what was passed, and return how many chains a level has."""
    check_key(key)
    if particles < 2:
        raise ValueError(f"particles must be at least 2, got {particles}.")
    if moves < 1:
        raise ValueError(f"moves must be at least 1, got {moves}.")
    jax.eval_shape(target.sample_prior, key)  # says what is missing, if the prior is
    if not waste_free:
        return particles
    if particles % (moves + 1) or particles < 2 * (moves + 1):
        raise ValueError(
            f"particles must be a multiple of moves + 1 = {moves + 1}, of two chains at least, "
            f"got {particles}. Without waste all states of a chain are particles; "
            f"{max(2, round(particles / (moves + 1))) * (moves + 1)} would do."
        )
    return particles // (moves + 1)
