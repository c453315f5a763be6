r"""Feynman-Kac steering: particles of a reverse diffusion, resampled by intermediate rewards.

.. math:: p(x_0) \propto q(x_0) e^{\lambda r(x_0)}, \qquad
          \prod_{k=1}^{K} G_k = e^{\lambda r(x_0)}

with q the law of a stepper's own walk along a plan, whose step is the proposal. After every round
of steps a particle's intermediate reward r_k makes its potential G_k: ``difference``, ``maximum``
or ``sum_``. At the end r_K = r(x_0), and the last potential is exp(lambda r(x_0)) over the product
of those before. So the product is exact for each of them, and the evidence E_q[exp(lambda r(x_0))]
is unbiased whatever intermediate rewards are; they move the variance alone. A reward of -inf
forbids.

Reference: R. Singhal et al., "A General Framework for Inference-time Scaling and Steering of
Diffusion Models" (2025).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf import smc
from jaxinf.core import (
    Independent,
    Key,
    Leaf,
    PyTree,
    Scalar,
    check_key,
    is_concrete,
    record,
    static,
)
from jaxinf.core import first as first_of
from jaxinf.guide.intermediate import Intermediate, Unfinished, clean
from jaxinf.guide.reward import as_record, value_of
from jaxinf.sampler import AnyStepper, Plan
from jaxinf.sampler.driver import check_walk, host_table, narrowed
from jaxinf.sampler.stepper import advance, table


@record
class Difference:
    """G = exp(lambda (r_k - r_{k-1})), with r_0 = 0."""

    start = 0.0

    def __call__(self, memory: Array, reward: Array) -> tuple[Array, Array]:
        """Return what is remembered, and log G / lambda."""
        return reward, reward - memory


@record
class Maximum:
    """G = exp(lambda max_{j <= k} r_j)."""

    start = -jnp.inf

    def __call__(self, memory: Array, reward: Array) -> tuple[Array, Array]:
        """Return what is remembered, and log G / lambda."""
        most = jnp.maximum(memory, reward)
        return most, most


@record
class Sum:
    """G = exp(lambda sum_{j <= k} r_j)."""

    start = 0.0

    def __call__(self, memory: Array, reward: Array) -> tuple[Array, Array]:
        """Return what is remembered, and log G / lambda."""
        return memory + reward, memory + reward


difference = Difference()
maximum = Maximum()
sum_ = Sum()


class Particle(NamedTuple):
    """A particle on its way."""

    state: Any
    """The stepper's."""
    memory: Array
    """What the potential remembers of earlier rewards."""
    total: Array
    """The sum of log potentials so far."""


class Rows(NamedTuple):
    """Steps of the plan that lie between two resamplings."""

    step: Leaf
    t: Leaf
    s: Leaf
    table: Any
    real: Leaf
    """False for what fills the first round up."""
    last: Leaf
    """Whether the plan ends with it."""


@record
class Steered:
    """The Feynman-Kac model of :func:`steer`, for :func:`jaxinf.smc.run`."""

    stepper: Leaf
    denoiser: Leaf
    reward: Leaf
    potential: Leaf
    intermediate: Leaf
    scale: Leaf
    cond: Leaf
    start: Leaf
    shape: tuple[int, ...] = static()

    def init(self, key: Key) -> Particle:
        """Draw x_T."""
        x = self.start.sample(key, (1, *self.shape))[0]
        zero = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
        return Particle(self.stepper.init(x), zero + self.potential.start, zero)

    def step(self, key: Key, particle: Any, inputs: Any) -> tuple[Particle, Array]:
        """Walk to the next resampling and return the log potential there."""
        key_walk, key_reward = jax.random.split(key)
        state, info = self._walked(key_walk, particle.state, inputs)
        last = inputs.last[-1]
        here = Unfinished(state.x, inputs.s[-1], info, self._denoise, self.stepper.process)
        reward = jax.lax.cond(
            last,
            lambda: self._reward(state.x),
            lambda: self.intermediate(key_reward, self._reward, here),
        ).astype(particle.memory.dtype)
        memory, exponent = self.potential(particle.memory, reward)
        log = jnp.where(last, self.scale * reward - particle.total, self.scale * exponent)
        # what has weight 0 keeps it; a state that is no number any more is counted as invalid
        log = jnp.where(particle.total == -jnp.inf, -jnp.inf, log)
        log = jnp.where(jnp.all(jnp.isfinite(state.x)), log, jnp.nan)
        return Particle(state, memory, particle.total + log), log

    def _denoise(self, x: Array, t: Scalar) -> Array:
        return self.denoiser(x, t, self.cond)

    def _reward(self, x0: Array) -> Float[Array, ""]:
        return value_of(self.reward, x0, self.cond)

    def _walked(self, key: Key, state: Any, rows: Rows) -> tuple[Any, Any]:
        """Take the round's steps; return the state and the last step's info."""
        index = jnp.zeros((), jnp.int32)

        def step(state: Any, row: Rows) -> tuple[Any, Any]:
            noise = Independent(key, row.step, index, state.x.shape, state.x.dtype)
            new, info = advance(self.stepper, self._denoise, noise, state, row.t, row.s, row.table)
            return jax.tree.map(lambda a, b: a.astype(b.dtype), new, state), info

        def walk(carry: tuple[Any, Any], row: Rows) -> tuple[tuple[Any, Any], None]:
            return jax.lax.cond(row.real, lambda: step(carry[0], row), lambda: carry), None

        shapes = jax.eval_shape(step, state, first_of(rows))[1]
        empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return jax.lax.scan(walk, (state, empty), rows)[0]


def steer(
    key: Key,
    stepper: AnyStepper,
    denoiser: Any,
    plan: Plan,
    reward: Any,
    shape: tuple[int, ...],
    cond: PyTree = None,
    *,
    scale: Scalar = 1.0,
    potential: Any = difference,
    intermediate: Intermediate = clean,
    interval: int = 1,
    start: Any = None,
    particles: int = 64,
    resample: smc.Scheme = smc.systematic,
    threshold: Scalar = 1.0,
    history: bool = False,
) -> smc.Run:
    """Draw from a sampler's law tilted by exp(lambda r(x_0)), with the evidence.

    Args:
      key: a typed key.
      stepper: with noise, by which particles drawn anew come apart: ``ancestral``, ``unmask``.
      denoiser: called as ``denoiser(x, t, cond)`` for one example.
      plan: the times to walk; it must fall.
      reward: r, called as ``reward(x0, cond)``: a function, or a pytree with numbers of its own.
      shape: one example's.
      cond: one problem's, for denoiser and reward; problems side by side by ``jax.vmap``.
      scale: lambda.
      potential: ``difference``, ``maximum`` or ``sum_``.
      intermediate: an unfinished particle's reward: ``clean``, at the last step's prediction of x_0
        from its start; for tokens ``likeliest``, ``drawn(n)``, at one call more a round.
      interval: steps a round; the first is shorter where they do not divide the plan's.
      start: the law of x_T, with ``sample(key, shape)``; the process's ``prior()`` by default.
      particles: how many, two or more.
      resample: the scheme.
      threshold: the share of effective particles below which a round resamples first; 0 never.
      history: whether particles of all rounds are kept.

    Returns:
      :class:`jaxinf.smc.Run`, whose particles are x_0, weighted. Where all weights are lost
      ``info.alive`` says so and the log-evidence is -inf; NaNs are counted in ``invalid``.

    Raises:
      TypeError: for a reward that cannot be called, or an ``intermediate`` that does not suit.
      ValueError: for a reward that is not one number, an interval below 1, or a plan that rises.

    Reference:
      R. Singhal et al. (2025), see the module; section 3 and algorithm 1.
    """
    start = stepper.process.prior() if start is None else start
    rows = _rounds(key, stepper, plan, interval, start, shape)
    model = Steered(
        stepper, denoiser, as_record(reward), potential, intermediate, scale, cond, start, shape
    )
    return _bare(
        smc.run(key, model, rows, particles=particles, resample=resample, threshold=threshold,
                history=history)
    )  # fmt: skip


def _bare(run: smc.Run) -> smc.Run:
    """Return a run whose particles are examples alone."""
    kept = run.history
    if kept is not None:
        kept = kept._replace(particles=kept.particles.state.x)
    population = dataclasses.replace(run.population, particles=run.population.particles.state.x)
    return run._replace(population=population, history=kept)


def _rounds(
    key: Key, stepper: AnyStepper, plan: Plan, interval: int, start: Any, shape: tuple[int, ...]
) -> Rows:
    """Return the plan's steps with leading axes [rounds, interval]; the first is filled up."""
    check_key(key)
    if not (isinstance(interval, int | np.integer) and interval >= 1):
        raise ValueError(
            f"interval must be a whole number of steps, at least 1, got {interval!r}; "
            "threshold=0 never resamples"
        )
    if plan.rises:
        raise ValueError(
            "steering walks plans that fall, and this one has restarts; steer along the plain plan"
        )
    like = jax.eval_shape(lambda: start.sample(key, (1, *shape)))
    check_walk(stepper, plan, jnp.zeros(like.shape, like.dtype), None, None, None)
    times = jnp.asarray(plan.times, jnp.promote_types(like.dtype, jnp.float32))
    if is_concrete((stepper, plan)):
        own = narrowed(host_table(stepper, plan), times.dtype)
    else:
        own = table(stepper, times)
    steps = jnp.arange(plan.steps)
    ends = steps == plan.steps - 1
    rows = Rows(steps, times[:-1], times[1:], own, steps >= 0, ends)
    spare = -plan.steps % interval

    def fold(a: Array) -> Array:
        a = jnp.concatenate([jnp.repeat(a[:1], spare, 0), a])
        return a.reshape(-1, interval, *a.shape[1:])

    rows = jax.tree.map(fold, rows)
    return rows._replace(
        real=rows.real & (jnp.arange(rows.real.size) >= spare).reshape(-1, interval)
    )
