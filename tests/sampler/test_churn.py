"""Churn: EDM's algorithm 2 line by line, the law of its output, and what is refused."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, process, sampler, score
from jaxinf.sampler.churn import Churn, churn
from jaxinf.sampler.stepper import advance, table

SCHEDULES = {
    "cosine": (lambda: process.cosine(t_max=0.99), sampler.uniform),
    "linear_beta": (process.linear_beta, sampler.uniform),
    "edm": (process.edm, sampler.karras),
}
METHODS = {"heun": (sampler.heun, 2), "ddim": (sampler.ddim, 1)}


class Given(NamedTuple):
    """Noise that is what the test says."""

    z: jax.Array

    def increment(self, t, s):
        return self.z


def algorithm_2(denoise, times, x, draws, s_churn, s_tmin, s_tmax, s_noise):
    """The paper's pseudocode, for alpha = 1 and sigma(t) = t."""
    for i, (t, after) in enumerate(itertools.pairwise(times)):
        gamma = min(s_churn / (len(times) - 1), math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0
        up = t + gamma * t
        x = x + np.sqrt(up**2 - t**2) * s_noise * draws[i]
        d = (x - denoise(x, up)) / up
        new = x + (after - up) * d
        if after != 0:
            new = x + (after - up) * (d + (new - denoise(new, after)) / after) / 2
        x = new
    return x


@pytest.mark.parametrize("s_churn", [3.0, 40.0])
def test_it_is_the_paper_s_algorithm(s_churn, x64):
    """Around Heun on EDM's schedule, with the same draws, to rounding."""
    p = process.gaussian(process.edm())
    denoiser = score.oracle(p, core.gaussian(jnp.array([0.7, -0.2]), core.Diagonal(0.6)))
    stepper = churn(sampler.heun(p), s_churn, (0.05, 50.0), 1.007)
    times = sampler.karras(p, 12).times
    rng = np.random.default_rng(0)
    x, draws = rng.normal(size=2) * 80, rng.normal(size=(12, 2))
    wanted = algorithm_2(
        lambda x, t: np.asarray(denoiser(jnp.asarray(x), t)),
        times, x, draws, s_churn, 0.05, 50.0, 1.007,
    )  # fmt: skip
    rows = table(stepper, jnp.asarray(times))
    state = stepper.init(jnp.asarray(x))
    for i in range(12):
        state, _ = advance(
            stepper, lambda x, t: denoiser(x, t), Given(jnp.asarray(draws[i])), state,
            jnp.asarray(times[i]), jnp.asarray(times[i + 1]), rows[i],
        )  # fmt: skip
    np.testing.assert_allclose(state.x, wanted, rtol=1e-11)


def slope_of_the_law(stepper, make_plan, steps):
    """The order seen on Gaussian data over one doubling; each step is affine in (x, z)."""
    p = stepper.process
    data = core.gaussian(jnp.array([0.7]), core.Diagonal(0.6))
    denoiser = score.oracle(p, data)
    start, wanted = p.marginal(data, p.t_max), p.marginal(data, p.t_min)

    @jax.jit
    @jax.vmap
    def affine(t, s, row):
        def end(x, z):
            state = sampler.State(x)
            new, _ = advance(stepper, lambda x, t: denoiser(x, t), Given(z), state, t, s, row)
            return new.x[0]

        origin, unit = jnp.zeros(1), jnp.ones(1)
        shift = end(origin, origin)
        return shift, end(unit, origin) - shift, end(origin, unit) - shift

    errors = []
    for count in (steps, 2 * steps):
        times = jnp.asarray(make_plan(p, count, end=p.t_min).times)
        mean, variance = start.mean[0], start.covariance.scale**2
        maps = affine(times[:-1], times[1:], table(stepper, times))
        for shift, slope, spread in np.stack(maps, axis=1):
            mean, variance = slope * mean + shift, slope**2 * variance + spread**2
        gaps = abs(mean - wanted.mean[0]), abs(variance - wanted.covariance.scale**2)
        errors.append(max(float(gap) for gap in gaps))
    return np.log2(errors[0] / errors[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_law_converges_at_the_wrapped_order(method, schedule, x64):
    """Gaussian data: mean and variance at t_min approach the marginal's as without churn."""
    make_schedule, make_plan = SCHEDULES[schedule]
    make, order = METHODS[method]
    stepper = churn(make(process.gaussian(make_schedule())), 8.0, (0.01, 20.0))
    assert abs(slope_of_the_law(stepper, make_plan, 400) - order) < 0.15


@core.record
class Lowering(Churn):
    """Goes down instead of up."""

    def table(self, times):
        down = dataclasses.replace(self, amount=-self.amount)
        ratio = times[:-1] / Churn.table(self, times)
        return times[:-1] * ratio if down else None


def test_the_law_catches_wrong_noise(x64):
    """Two per cent too much noise, or a level that is lowered: the marginal is missed."""
    p = process.gaussian(process.edm())
    louder = churn(sampler.heun(p), 8.0, (0.01, 20.0), 1.02)
    assert slope_of_the_law(louder, sampler.karras, 100) < 0.5
    lower = Lowering(sampler.heun(p), 8.0, (0.01, 20.0), 1.0)
    assert slope_of_the_law(lower, sampler.karras, 100) < 0.5


@pytest.mark.parametrize("make", [process.cosine, process.edm, process.linear_interpolation])
def test_the_table_raises_the_noise_level(make, x64):
    """By 1 + gamma where ``between`` holds the level, never past t_max, nothing elsewhere."""
    p = process.gaussian(make())
    times = jnp.asarray(sampler.uniform(p, 40).times)
    rows = table(churn(sampler.heun(p), 4.0, (0.1, 3.0)), times)
    level, up = (np.exp(-jax.vmap(p.log_snr)(t) / 2) for t in (times[:-1], rows))
    inside = (level >= 0.1) & (level <= 3.0)
    met = inside & np.asarray(rows < p.t_max)
    assert met.sum() >= 1
    np.testing.assert_allclose(up[met], 1.1 * level[met], rtol=1e-12)
    np.testing.assert_array_equal(rows[~inside], times[:-1][~inside])
    assert float(rows.max()) <= p.t_max
    capped = table(churn(sampler.heun(p), 1e9, (0.1, 0.5)), times)
    inside = (level >= 0.1) & (level <= 0.5)
    assert np.all(np.exp(-jax.vmap(p.log_snr)(capped) / 2) / level <= math.sqrt(2) * (1 + 1e-12))


def test_the_neutral_amount():
    """At the number 0 the stepper itself; at a traced 0 the same numbers, also where alpha is 0."""
    p = process.gaussian(process.cosine())
    assert churn(sampler.heun(p), 0.0) == sampler.heun(p)
    denoiser = score.oracle(p, core.gaussian(jnp.array([0.7]), core.Diagonal(0.6)))
    plan, x, key = sampler.uniform(p, 4), jnp.array([[0.3]]), jax.random.key(0)

    @jax.jit
    def traced(amount):
        return sampler.sample(key, churn(sampler.heun(p), amount), denoiser, plan, x).x

    plain = sampler.sample(key, sampler.heun(p), denoiser, plan, x).x
    np.testing.assert_allclose(traced(0.0), plain, rtol=4 * 4 * np.finfo(np.float32).eps)
    assert abs(float((traced(2.0) - plain)[0, 0])) > 1e-3
    stepper = churn(sampler.heun(p), 2.0)
    assert plan.calls(stepper) == plan.calls(sampler.heun(p))


def test_it_composes(key):
    """Under jit(shard_map) as alone, grad is finite, sample 0 alone is itself, nothing recompiles.

    The starts are drawn at t_max, where alpha is 0 and no noise is added.
    """
    p = process.gaussian(process.cosine())
    denoiser = score.oracle(p, core.gaussian(jnp.array([0.7, -0.2]), core.Diagonal(0.6)))
    plan, x = sampler.uniform(p, 6), p.prior().sample(jax.random.key(5), (8, 2))
    stepper = churn(sampler.heun(p), 1.5)

    def run(x, index=None, stepper=stepper):
        return sampler.sample(key, stepper, denoiser, plan, x, index=index).x

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_allclose(sharded(x, jnp.arange(8)), run(x), atol=1e-5)
    np.testing.assert_array_equal(run(x.at[1:].set(7.0))[0], run(x)[0])
    gradient = jax.grad(lambda stepper: jnp.sum(run(x, stepper=stepper)))(stepper)
    chex.assert_tree_all_finite(gradient)
    assert float(gradient.amount) != 0

    step = jax.jit(chex.assert_max_traces(lambda *a: sampler.sample(*a).x, n=1))
    for amount in (1.0, 2.0):
        step(key, churn(sampler.heun(p), amount), denoiser, plan, x)


P = process.gaussian(process.edm())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: churn(sampler.heun(P), -1.0), ValueError, "0 adds no noise"),
        (lambda: churn(sampler.heun(P), math.nan), ValueError, "not be negative"),
        (lambda: churn(sampler.heun(P), 1.0, (2.0, 1.0)), ValueError, "holds no noise level"),
        (lambda: churn(sampler.heun(P), 1.0, noise_scale=0.0), ValueError, "1 keeps the marg"),
        (lambda: churn(churn(sampler.heun(P), 1.0), 1.0), TypeError, "one-step methods.*heun"),
        (lambda: churn(Remembering(P), 1.0), TypeError, "carries a Pair.*raised ones"),
    ],
)
def test_bad_input(call, error, message):
    """Each mistake is named with its mend."""
    with pytest.raises(error, match=message):
        call()


class Pair(NamedTuple):
    x: jax.Array
    before: jax.Array


@core.record
class Remembering:
    """A two-step method's state."""

    process: core.Leaf

    def init(self, x):
        return Pair(x, x)

    def step(self, denoise, noise, state, t, s):
        raise NotImplementedError

    def calls(self, t, s):
        return 1
