"""Runge-Kutta steppers: their orders, what a mutation does to them, and time 0."""

import dataclasses
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, process, sampler, score
from jaxinf.sampler.runge_kutta import RungeKutta, midpoint, rk4

COSINE = process.cosine(t_max=0.99)
SCHEDULES = {
    "cosine": (lambda: COSINE, sampler.uniform),
    "linear_beta": (process.linear_beta, sampler.uniform),
    "edm": (process.edm, sampler.karras),
    "linear_interpolation": (lambda: process.linear_interpolation(0.2, 0.99), sampler.uniform),
}
# the doubling at which the next order's share is below a tenth and the error above 1e-11
ORDERS = {"midpoint": (midpoint, 2, 400), "rk4": (rk4, 4, 80)}
# Where the flow of a Gaussian is x = m + c sqrt(d^2 + t^2) (in x / alpha for the straight path),
# the midpoint method's h^3 term, a'' / 24 + a a' / 4 + a^3 / 6 for a = t / (d^2 + t^2), is 0.
BETTER = {("midpoint", "edm"): 3, ("midpoint", "linear_interpolation"): 3}
methods = pytest.mark.parametrize("method", ORDERS)


class Silent(NamedTuple):
    """Noise that none of these methods asks for."""

    def increment(self, t, s):
        raise AssertionError


def heun(p):
    """Heun's method as a table."""
    return RungeKutta(p, (1.0,), ((1.0,),), (0.5, 0.5))


def slope_of_the_law(stepper, make_plan, steps):
    """The order seen on Gaussian data over one doubling, and the finer error.

    Mean and variance of the output are exact: each step is affine in x.
    """
    p = stepper.process
    data = core.gaussian(jnp.array([0.7]), core.Diagonal(0.6))
    denoiser = score.oracle(p, data)
    start, wanted = p.marginal(data, p.t_max), p.marginal(data, p.t_min)
    plans = [make_plan(p, count, end=p.t_min).times for count in (steps, 2 * steps)]

    @jax.jit
    @jax.vmap
    def affine(t, s):
        def end(x):
            state = sampler.State(x)
            return stepper.step(lambda x, t: denoiser(x, t), Silent(), state, t, s)[0].x[0]

        shift = end(jnp.zeros(1))
        return shift, end(jnp.ones(1)) - shift

    pairs = (np.concatenate([times[part] for times in plans]) for part in (np.s_[:-1], np.s_[1:]))
    maps = np.stack(affine(*map(jnp.asarray, pairs)), axis=1)
    errors = []
    for part in (maps[:steps], maps[steps:]):
        mean, variance = start.mean[0], start.covariance.scale**2
        for shift, slope in part:
            mean, variance = slope * mean + shift, slope**2 * variance
        gaps = abs(mean - wanted.mean[0]), abs(variance - wanted.covariance.scale**2)
        errors.append(max(float(gap) for gap in gaps))
    return np.log2(errors[0] / errors[1]), errors[1]


@methods
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_law_converges_at_the_stated_order(method, schedule, x64):
    """Gaussian data: mean and variance at t_min approach the marginal's, at the order stated."""
    make, order, steps = ORDERS[method]
    make_schedule, make_plan = SCHEDULES[schedule]
    slope, error = slope_of_the_law(make(process.gaussian(make_schedule())), make_plan, steps)
    assert error > 1e-11
    assert abs(slope - BETTER.get((method, schedule), order)) < 0.15


def mutations(stepper):
    """Every coefficient that is not 0, two per cent larger, one at a time."""
    for i, row in enumerate([stepper.nodes, stepper.weights, *stepper.stages]):
        for j, number in enumerate(row):
            if number:
                changed = (*row[:j], 1.02 * number, *row[j + 1 :])
                rows = [stepper.nodes, stepper.weights, *stepper.stages]
                rows[i] = changed
                yield dataclasses.replace(
                    stepper, nodes=rows[0], weights=rows[1], stages=tuple(rows[2:])
                )


def defects(stepper, order):
    """The order conditions' violation: b . phi = 1 / gamma for the rooted trees up to the order."""
    c = np.array([0.0, *stepper.nodes])
    a = np.zeros((c.size, c.size))
    for row, shares in zip(a[1:], stepper.stages, strict=True):
        row[: len(shares)] = shares
    b, one = np.array(stepper.weights), np.ones_like(c)
    trees = [(one, 1, 1), (c, 2, 2), (c**2, 3, 3), (a @ c, 6, 3)]
    trees += [(c**3, 4, 4), (c * (a @ c), 8, 4), (a @ c**2, 12, 4), (a @ a @ c, 24, 4)]
    gaps = [b @ phi - 1 / gamma for phi, gamma, size in trees if size <= order]
    return np.abs([*gaps, *(a @ one - c)]).max()


@methods
def test_the_order_conditions_catch_every_mutation(method):
    """They hold to rounding; two per cent in any one coefficient breaks them."""
    make, order, _ = ORDERS[method]
    stepper = make(process.gaussian(COSINE))
    assert defects(stepper, order) < 1e-15
    mutants = list(mutations(stepper))
    assert len(mutants) == {"midpoint": 3, "rk4": 10}[method]
    assert min(defects(mutant, order) for mutant in mutants) > 1e-3


@methods
def test_the_law_catches_mutations(method, x64):
    """Two per cent in a node, a weight or a stage: the order on Gaussian data is lost."""
    make, order, _ = ORDERS[method]
    mutants = list(mutations(make(process.gaussian(COSINE))))
    for mutant in mutants[:: len(mutants) // 3]:
        assert slope_of_the_law(mutant, sampler.uniform, 50)[0] < order - 0.5


@methods
def test_the_order_on_a_mixture(method, x64):
    """End points approach the probability flow's at the stated order, on eight dimensions."""
    make, order, _ = ORDERS[method]
    rng = np.random.default_rng(3)
    p = process.gaussian(process.edm())
    law = core.mixture(
        jnp.asarray(rng.dirichlet(np.full(4, 3.0))),
        jnp.asarray(rng.normal(size=(4, 8))),
        jnp.asarray(rng.uniform(0.3, 0.6, size=4)),
    )
    denoiser, x = score.oracle(p, law), jnp.asarray(rng.normal(size=(8, 8)) * 80)

    def end(stepper, steps):
        plan = sampler.karras(p, steps, end=p.t_min)
        return sampler.sample(jax.random.key(0), stepper, denoiser, plan, x).x

    truth = end(rk4(p), 5120)
    errors = [float(jnp.sqrt(jnp.mean((end(make(p), n) - truth) ** 2))) for n in (320, 640, 1280)]
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert errors[-1] > 1e-11
    np.testing.assert_allclose(slopes, order, atol=0.15)


def test_heun_is_such_a_table(x64):
    """The record at Heun's coefficients is ``heun``, to rounding, also where it ends at time 0."""
    p = process.gaussian(process.cosine())
    denoiser = score.oracle(p, core.gaussian(jnp.array([0.7, 0.1]), core.Diagonal(0.6)))
    x, plan = jnp.array([[0.3, -1.0]]), sampler.uniform(p, 5)
    one, two = (
        sampler.sample(jax.random.key(0), stepper, denoiser, plan, x).x
        for stepper in (heun(p), sampler.heun(p))
    )
    np.testing.assert_allclose(one, two, rtol=1e-14)
    assert [heun(p).calls(0.5, s) for s in (0.1, 0.0)] == [2, 1]


@methods
@pytest.mark.parametrize("make", [process.linear_beta, process.cosine, process.edm])
def test_time_zero_and_no_signal(method, make):
    """No call at time 0, where the velocity is infinite; finite from alpha = 0, in float32."""
    p = process.gaussian(make())
    stepper, seen = ORDERS[method][0](p), []
    denoiser = score.oracle(p, core.gaussian(jnp.array([0.7]), core.Diagonal(0.6)))

    def denoise(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return denoiser(x, t)

    times = [p.t_max, p.t_max / 2, 0.0]
    state = sampler.State(jnp.array([0.3]))
    for t, s in itertools.pairwise(times):
        seen.clear()
        state, info = stepper.step(denoise, Silent(), state, jnp.float32(t), jnp.float32(s))
        jax.effects_barrier()
        assert len(seen) == stepper.calls(t, s)
        assert min(seen) > 0
        chex.assert_tree_all_finite((state, info))
    if method == "rk4":
        clean = float(info.clean[0])
        assert len(seen) == 1
        if make is process.edm:
            assert abs(float(state.x[0]) - clean) < 1e-5 * p.t_max


def test_it_composes(key):
    """Under jit(shard_map) on eight devices as alone; grad is finite; sample 0 alone is itself."""
    p = process.gaussian(COSINE)
    denoiser = score.oracle(p, core.gaussian(jnp.array([0.7, -0.2]), core.Diagonal(0.6)))
    plan, x = sampler.uniform(p, 6), p.prior().sample(jax.random.key(5), (8, 2))
    stepper = rk4(p)

    def run(x, index=None):
        return sampler.sample(key, stepper, denoiser, plan, x, index=index).x

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_allclose(sharded(x, jnp.arange(8)), run(x), atol=1e-5)
    np.testing.assert_array_equal(run(x.at[1:].set(7.0))[0], run(x)[0])
    gradient = jax.grad(
        lambda stepper, den: jnp.sum(sampler.sample(key, stepper, den, plan, x).x), (0, 1)
    )(stepper, denoiser)
    chex.assert_tree_all_finite(gradient)
    assert run(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_other_numbers_compile_nothing(key):
    """Another schedule's numbers: the denoiser is traced once a stage's place, once in all."""
    traces = []

    @core.record
    class Counting:
        process: core.Leaf
        scale: core.Leaf

        def __call__(self, x, t, cond=None):
            traces.append(1)
            return self.scale * x

    counts = []
    for t_max in (0.9, 0.8):
        p = process.gaussian(process.cosine(t_max=t_max))
        sampler.sample(key, rk4(p), Counting(p, t_max), sampler.uniform(p, 7), jnp.ones((2, 2)))
        counts.append(len(traces))
    assert counts[0] == counts[1] <= 4
