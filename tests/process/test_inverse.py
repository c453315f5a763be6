"""The time of a signal-to-noise ratio."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, process
from jaxinf.process.inverse import time_of


def _power(t):
    return 1 - t**1.5


def _sine(t):
    return jnp.cos(t)


def _square(t):
    return t * (1 + t)


BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 100) ** 2
SCHEDULES = {
    "cosine": process.cosine,
    "linear_beta": process.linear_beta,
    "betas": lambda: process.betas(BETAS),
    "variance_preserving": lambda: process.variance_preserving(_power),
    "variance_exploding": process.variance_exploding,
    "edm": process.edm,
    "linear_interpolation": process.linear_interpolation,
    "custom": lambda: process.custom(_sine, _square),
    "zero_terminal_snr": lambda: process.zero_terminal_snr(process.linear_beta()),
    "zero_terminal_betas": lambda: process.zero_terminal_snr(process.betas(BETAS)),
}
schedules = pytest.mark.parametrize("name", SCHEDULES)


def times_of(p, count, dtype):
    """Times close to both ends and between, and off a table's knots."""
    inner = np.geomspace(p.t_min * 1.0137, p.t_max * 0.9971, count)
    late = p.t_max * (1 - np.geomspace(0.00117, 0.3, count))
    return jnp.asarray(np.sort(np.concatenate([inner, late])), dtype)


@jax.jit
@partial(jax.vmap, in_axes=(None, 0))
def round_trip(p, t):
    ratio, slope = jax.value_and_grad(p.log_snr)(t)
    back, gradient = jax.value_and_grad(lambda ratio: time_of(p, ratio))(ratio)
    return ratio, p.alpha(t), p.sigma(t), slope, back, gradient


@schedules
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_the_inverse(name, dtype):
    """Back at the time, to the ratio's own rounding over its slope.

    The ratio's logarithm is wrong by a few units in the last place of itself, of alpha over its
    distance from where it vanishes and of 1 - alpha^2 over sigma^2, as far as the schedule is
    written with that difference; the time is wrong by that over the slope, and by its last place.
    Its gradient is 1 / log_snr'(t).
    """
    with jax.enable_x64(dtype == "float64"):
        p = process.gaussian(SCHEDULES[name]())
        t = times_of(p, 12, dtype)
        ratio, alpha, sigma, slope, back, gradient = round_trip(p, t)
        assert back.dtype == t.dtype
        eps = float(jnp.finfo(dtype).eps)
        rounding = 4 * eps * (jnp.abs(ratio) + 2 + 1 / alpha + jnp.maximum(alpha / sigma, 1) ** 2)
        np.testing.assert_array_less(jnp.abs(back - t), rounding / jnp.abs(slope) + 2 * eps * t)
        assert bool(jnp.all(jnp.diff(back) > 0))
        if dtype == "float64":  # the times agree to nine digits, and so do the slopes
            np.testing.assert_allclose(gradient, 1 / slope, rtol=1e-6)


def test_the_last_bit_is_found(x64):
    """On EDM's schedule the answer is exp(-log_snr / 2): 15 digits from 80 down to 1e-150."""
    p = process.gaussian(process.edm())
    for sigma in (79.0, 1.0, 2e-3, 1e-30, 1e-150):
        np.testing.assert_allclose(
            time_of(p, -2 * np.log(sigma)), sigma, rtol=4e-16 * (2 + abs(np.log(sigma)))
        )


@schedules
def test_ratios_that_are_never_met_give_the_ends(name):
    """Beyond what the process has: its ends exactly, with gradient 0, none of it NaN."""
    p = process.gaussian(SCHEDULES[name]())
    solve = jax.jit(jax.vmap(jax.value_and_grad(lambda ratio: time_of(p, ratio))))
    times, gradients = solve(jnp.array([3000.0, -3000.0]))
    np.testing.assert_array_equal(times, np.float32([0.0, p.t_max]))
    np.testing.assert_array_equal(gradients, [0.0, 0.0])


def test_its_gradient_by_the_schedule(x64):
    """On beta's integral B t^2 / 2 + ... the time of a fixed ratio moves as finite differences say.

    Central differences of width h err by h^2 and eps / h: 1e-5 leaves nine digits.
    """

    def solve(beta_max):
        p = process.gaussian(process.linear_beta(0.1, beta_max))
        return time_of(p, -1.3)

    h = 1e-5 * 20
    difference = (solve(20.0 + h) - solve(20.0 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(solve)(20.0), difference, rtol=1e-7)

    def last(t_max):
        return time_of(process.gaussian(process.cosine(t_max=t_max)), -100.0)

    assert float(jax.grad(last)(0.9)) == 1.0


def test_other_numbers_compile_nothing_and_shards_agree():
    """One trace for two schedules of a kind; the same under shard_map; bfloat16 is taken."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def solve(p, ratios):
        return jax.vmap(time_of, (None, 0))(p, ratios)

    ratios = jnp.linspace(-3.0, 8.0, 8)
    for sigma_max in (80.0, 50.0):
        p = process.gaussian(process.edm(sigma_max=sigma_max))
        np.testing.assert_allclose(solve(p, ratios), jnp.exp(-ratios / 2), rtol=4e-6)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    run = jax.jit(
        jax.shard_map(
            lambda r: jax.vmap(time_of, (None, 0))(p, r), mesh=mesh, in_specs=spec, out_specs=spec
        )
    )
    np.testing.assert_array_equal(run(ratios), solve(p, ratios))
    assert time_of(p, jnp.bfloat16(1.0)).dtype == jnp.float32
    coloured = process.gaussian(process.edm(), core.dense(jnp.eye(2) * 3))
    assert float(time_of(coloured, 0.0)) == 1.0
