"""The compiled loop of tempered sequential Monte Carlo: weigh, resample, move, level by level."""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxinf.core import Key, Leaf, batch_vmap, carry, record, spread, white
from jaxinf.smc.population import Population, population
from jaxinf.smc.resampling import Scheme
from jaxinf.smc.temperature import Tempered, next_temperature
from jaxinf.smc.transport import Triangular, fit_transport
from jaxinf.target import mapped

GAIN = 1.0
"""By how much the logarithm of a step size moves for an acceptance that is off by one."""


@record
class Schedule:
    """All that an adaptive run chose; see :func:`schedule`."""

    temperatures: Leaf
    """At which particles are moved, rising to 1, [levels]."""
    kernel: Leaf
    """With a leading axis of levels on every leaf; step sizes are [levels, moves]."""
    levels: Leaf
    """How many of them count, ()."""
    transport: Leaf = None
    """Of each level where there is one: moves are made in its coordinates."""


class Tempering(NamedTuple):
    """What a tempered run found."""

    population: Population
    """At temperature 1, with equal weights; its particles are positions."""
    log_evidence: Float[Array, ""]
    """NaN where temperature 1 was not reached."""
    standard_error: Float[Array, ""]
    """Of the log-evidence; see :meth:`Population.log_evidence_error`."""
    schedule: Schedule
    """As it was run; pass it to :func:`anneal` for an unbiased second run."""
    ess: Float[Array, " levels"]
    """Effective share of the particles before they were resampled; 0 past the last level."""
    acceptance: Float[Array, "levels moves"]
    finished: Bool[Array, ""]
    """Whether temperature 1 was reached, with particles alive."""


class Options(NamedTuple):
    """What is static in the loop."""

    chains: int
    moves: int
    waste_free: bool
    resample: Scheme
    levels: int

    @property
    def particles(self) -> int:
        """How many there are."""
        return self.chains * (self.moves + 1 if self.waste_free else 1)


class Adapt(NamedTuple):
    """How levels are chosen by the particles."""

    kernel: Any
    """Its kind, its first step size and metric."""
    learn: Any
    """The metric's form, or that of a map that takes its place."""
    effective: Any


class _Carry(NamedTuple):
    """What goes from level to level."""

    level: Int[Array, ""]
    temperature: Float[Array, ""]
    log_step: Float[Array, ""]
    people: Population
    log_likelihood: Float[Array, " n"]
    plan: Schedule
    ess: Float[Array, " levels"]
    acceptance: Float[Array, "levels moves"]


@partial(jax.jit, static_argnames="options")
def run_levels(
    key: Key, target: Any, plan: Schedule | None, adapt: Adapt | None, jitter: Any, options: Options
) -> Tempering:
    """Run all levels along a plan, or, without one, as the particles choose."""
    key_start, key_levels = jax.random.split(key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key_start, jnp.arange(options.particles))
    z = spread(batch_vmap(target.sample_prior)(keys))
    zero = carry(z, 0.0)

    def level(now: _Carry) -> _Carry:
        key_draw, key_moves = jax.random.split(jax.random.fold_in(key_levels, now.level))
        row, weighed = _choose(now, adapt)
        there = row.temperatures
        drawn = weighed.draw(key_draw, options.resample, options.chains)
        states, kernel, log_step, acceptance = _move(
            key_moves, Tempered(target, there), row, drawn.particles, now.log_step, jitter,
            adapt is not None,
        )  # fmt: skip
        row = dataclasses.replace(row, kernel=kernel)
        people = _settle(drawn, states, options.waste_free)
        return _Carry(
            level=now.level + 1,
            temperature=there,
            log_step=log_step,
            people=people,
            log_likelihood=batch_vmap(target.log_likelihood)(people.particles),
            plan=now.plan if adapt is None else _written(now.plan, now.level, row),
            ess=now.ess.at[now.level].set(weighed.ess() / options.particles),
            acceptance=now.acceptance.at[now.level].set(acceptance),
        )

    def going(now: _Carry) -> Array:
        ahead = (now.level < now.plan.levels) & now.people.alive
        return ahead if adapt is None else ahead & (now.temperature < 1)

    start = _Carry(
        level=zero.astype(jnp.int32),
        temperature=zero,
        log_step=zero if adapt is None else jnp.log(adapt.kernel.step_size) + zero,
        people=population(z),
        log_likelihood=batch_vmap(target.log_likelihood)(z),
        plan=_blank(adapt, z, options) if plan is None else plan,
        ess=jnp.zeros(options.levels, z.dtype) + zero,
        acceptance=jnp.zeros((options.levels, options.moves), z.dtype) + zero,
    )
    end = jax.lax.while_loop(going, level, start)
    finished = (end.temperature == 1) & end.people.alive
    dead = ~end.people.alive
    return Tempering(
        population=end.people,
        log_evidence=jnp.where(finished | dead, end.people.log_evidence, jnp.nan),
        standard_error=end.people.log_evidence_error(),
        schedule=dataclasses.replace(end.plan, levels=end.level),
        ess=end.ess,
        acceptance=end.acceptance,
        finished=finished,
    )


def _choose(now: _Carry, adapt: Adapt | None) -> tuple[Schedule, Population]:
    """Return the schedule's row for the next level, and the particles weighed for it."""
    if adapt is None:
        row = jax.tree.map(lambda a: a[now.level], dataclasses.replace(now.plan, levels=None))
        there = row.temperatures
        return row, now.people.weigh((there - now.temperature) * now.log_likelihood)
    before = now.people.normalise()
    there = next_temperature(now.log_likelihood, before, now.temperature, adapt.effective)
    people = now.people.weigh((there - now.temperature) * now.log_likelihood)
    z, weights = people.particles, jnp.exp(people.normalise())
    steps = jnp.zeros_like(now.acceptance[0])  # found as the particles move
    if isinstance(adapt.learn, Triangular):
        metric, transport = white(), fit_transport(z, weights)[0]
    else:
        moments = adapt.learn.add(adapt.learn.none(z[0]), z, weights * people.ess())
        metric, transport = adapt.learn.covariance(moments), None
    kernel = dataclasses.replace(adapt.kernel, metric=metric, step_size=steps)
    return Schedule(there, kernel, None, transport), people


def _move(
    key: Key, target: Any, row: Schedule, z: Array, log_step: Array, jitter: Any, adapt: bool
) -> tuple[Array, Any, Array, Array]:
    """Move all chains; step sizes follow the acceptance, or are the kernel's own, one a move.

    Returns states [moves + 1, chains, dim], the kernel with the step sizes that were used, the
    logarithm of the next one, and the acceptance of each move.
    """
    kernel, transport = row.kernel, row.transport
    index, start = jnp.arange(z.shape[0]), z
    if transport is not None:
        target, z = mapped(target, transport), batch_vmap(transport.inverse)(z)

    def move(carry: Any, row: Any) -> Any:
        state, log_step = carry
        i, given = row
        step_size = jnp.exp(log_step) if adapt else given

        def one(key: Key, state: Any) -> Any:
            key_jitter, key_step = jax.random.split(key)
            u = jax.random.uniform(key_jitter, minval=-1, maxval=1)
            jittered = dataclasses.replace(kernel, step_size=step_size * jnp.exp(jitter * u))
            return jittered.step(key_step, target, state)

        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, i), index)
        state, info = batch_vmap(one)(keys, state)
        acceptance = jnp.mean(info.acceptance)
        if adapt:
            log_step = log_step + GAIN * (acceptance - kernel.goal)
        return (state, log_step), (state.z, step_size, acceptance)

    state = batch_vmap(partial(kernel.init, target))(z)
    (_, log_step), (states, steps, acceptance) = jax.lax.scan(
        move, (state, log_step), (jnp.arange(kernel.step_size.size), kernel.step_size)
    )
    if transport is not None:
        states = jax.vmap(batch_vmap(lambda u: transport.forward(u)[0]))(states)
    kernel = dataclasses.replace(kernel, step_size=steps)
    return jnp.concatenate([start[None], states]), kernel, log_step, acceptance


def _settle(drawn: Population, states: Array, waste_free: bool) -> Population:
    """Return the population of the chains' last states, or of all their states."""
    if not waste_free:
        return dataclasses.replace(drawn, particles=states[-1])
    length, chains, _ = states.shape
    each = jnp.repeat(jnp.arange(chains), length, total_repeat_length=chains * length)
    return dataclasses.replace(
        drawn,
        particles=spread(jnp.swapaxes(states, 0, 1).reshape(chains * length, -1)),
        log_weights=drawn.log_weights[each] - math.log(length),
        ancestors=drawn.ancestors[each],
        eves=drawn.eves[each],
    )


def _blank(adapt: Any, z: Array, options: Options) -> Schedule:
    """Return the buffers that an adaptive run writes its schedule into."""
    metric, transport = white(), None
    if isinstance(adapt.learn, Triangular):
        transport = jax.eval_shape(lambda z: fit_transport(z)[0], z)
    else:
        metric = adapt.learn.start(adapt.kernel.metric, z[0])
    steps = jnp.zeros(options.moves, z.dtype)
    kernel = dataclasses.replace(adapt.kernel, step_size=steps, metric=metric)
    zero = carry(z, 0.0)

    def rows(leaf: Any) -> Array:
        return jnp.zeros((options.levels, *jnp.shape(leaf)), jnp.result_type(leaf)) + zero

    return Schedule(
        temperatures=rows(zero),
        kernel=jax.tree.map(rows, kernel),
        levels=options.levels + zero.astype(jnp.int32),
        transport=jax.tree.map(rows, transport),
    )


def _written(plan: Schedule, level: Array, row: Schedule) -> Schedule:
    """Return a schedule with a level filled in."""
    unnumbered = dataclasses.replace(plan, levels=None)
    written = jax.tree.map(lambda a, b: a.at[level].set(b), unnumbered, row)
    return dataclasses.replace(written, levels=plan.levels)
