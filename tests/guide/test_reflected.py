"""Reflected processes: two series of one kernel, exact draws, Euler's law on a grid, the loss."""

import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, guide, process, sampler

TOP = 1.5
P = process.gaussian(process.edm(0.002, TOP))
R = guide.reflected(P)
FIRST, SECOND = 0.7, -0.25  # the density 1 + FIRST cos(pi x) + SECOND cos(2 pi x) on [0, 1]


@core.record
class Score:
    """grad log p_t, coordinate by coordinate, of the density of cosines."""

    scale: core.Leaf

    def __call__(self, x, t, cond=None):
        first, second = (
            amplitude * jnp.exp(-((k * jnp.pi * R.sigma(t)) ** 2) / 2)
            for k, amplitude in ((1, FIRST), (2, SECOND))
        )
        density = 1 + first * jnp.cos(jnp.pi * x) + second * jnp.cos(2 * jnp.pi * x)
        slope = first * jnp.sin(jnp.pi * x) + 2 * second * jnp.sin(2 * jnp.pi * x)
        return -self.scale * jnp.pi * slope / density


def images(start, end, variance, terms=60):
    """The kernel by very many images; the start may lie outside."""
    away = 2.0 * np.arange(-terms, terms + 1)
    gaps = np.stack([sign * start + end + n for n in away for sign in (-1, 1)])
    return np.sum(np.exp(-(gaps**2) / variance / 2), axis=0) / np.sqrt(2 * np.pi * variance)


kernel = jax.jit(guide.heat_kernel)
log_prob, score_of = jax.jit(guide.Reflected.log_prob), jax.jit(guide.Reflected.score)
along = jax.jit(jax.vmap(guide.heat_kernel, (None, 0, None)))


@pytest.mark.parametrize("variance", [1e-4, 0.05, 0.6366, 0.6367, 2.0, 30.0])
def test_images_and_cosines_are_one_kernel(variance, x64):
    """Both against many terms of the other, and at the switch; a law in the end."""
    grid = (np.arange(400) + 0.5) / 400
    for start in (0.0, 0.13, 0.98):
        got = jax.vmap(kernel, (None, 0, None))(
            jnp.array([start]), jnp.asarray(grid)[:, None], variance
        )
        if variance < 0.01:  # no other image counts
            gaps = np.stack([grid - start, grid + start, 2 - grid - start])
            wanted = np.logaddexp.reduce(-(gaps**2) / variance / 2)
            wanted -= np.log(2 * np.pi * variance) / 2
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10)
            continue
        k = np.arange(1, 200)[:, None]
        waves = np.cos(k * np.pi * start) * np.cos(k * np.pi * grid)
        cosines = 1 + 2 * np.sum(waves * np.exp(-(k**2) * np.pi**2 * variance / 2), axis=0)
        np.testing.assert_allclose(
            np.exp(got), images(start, grid, variance), rtol=1e-11, atol=1e-13
        )
        np.testing.assert_allclose(np.exp(got), cosines, rtol=1e-10, atol=1e-13)
        assert abs(np.exp(got).mean() - 1) < 1e-4


def test_it_is_a_semigroup_of_coordinates(x64):
    """Chapman and Kolmogorov: means of cosines shrink under the kernel; and sums over axes."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    y, w = jnp.asarray((nodes + 1) / 2), weights / 2
    for variance in (0.04, 0.3, 1.2):
        density = np.exp(along(jnp.array([0.3]), y[:, None], variance))
        for k in (1, 2):
            shrunk = np.exp(-(k**2) * np.pi**2 * variance / 2) * np.cos(k * np.pi * 0.3)
            np.testing.assert_allclose(w @ (density * np.cos(k * np.pi * y)), shrunk, atol=1e-9)
    x, y = jnp.array([[0.1, 0.9]]), jnp.array([[0.4, 0.7]])
    parts = [kernel(x[:, i], y[:, i], 0.3) for i in (0, 1)]
    np.testing.assert_allclose(kernel(x, y, 0.3), sum(parts), rtol=1e-12)


@pytest.mark.parametrize("t", [0.05, 0.9])
def test_draws_and_scores_are_the_kernel_s(t, key):
    """Folded draws in ten bins, and the mean score, p(1) - p(0): |z| < 4; no slope at a wall."""
    x0 = jnp.array([0.08])
    z = jax.random.normal(key, (20_000, 1))
    x = jax.vmap(R.perturb, (None, 0, None))(x0, z, t)
    assert x.min() >= 0
    assert x.max() <= 1
    grid = (np.arange(2000) + 0.5) / 2000
    density = images(0.08, grid, R.sigma(t).item() ** 2).reshape(10, 200).mean(axis=1) / 10
    counts = np.histogram(np.asarray(x), bins=10, range=(0, 1))[0]
    kept = density * len(x) > 10
    error = np.sqrt(density * (1 - density) * len(x))
    assert np.abs((counts - len(x) * density) / error)[kept].max() < 4
    inner, step = jnp.array([0.3]), 1e-2
    near, far = (log_prob(R, x0, inner + s * step, t) for s in (-1, 1))
    np.testing.assert_allclose(score_of(R, x0, inner, t)[0], (far - near) / (2 * step), rtol=1e-2)
    rounding = 1e-5 + 6e-8 / t**4  # the gaps' squares over the variance, and their slopes
    for wall in (0.0, 1.0):
        np.testing.assert_allclose(score_of(R, x0, jnp.array([wall]), t), 0.0, atol=rounding)
    slope = np.asarray(jax.jit(jax.vmap(R.score, (None, 0, None)))(x0, x, t), np.float64)
    across = np.subtract(*images(0.08, np.array([1.0, 0.0]), R.sigma(t).item() ** 2))
    assert abs(slope.mean() - across) < 4 * slope.std() / np.sqrt(len(x))


def chain(score, times, cells=400):
    """The law of Euler's folded steps from the uniform law, on a grid of cells."""
    y = (np.arange(cells) + 0.5) / cells
    law = np.full(cells, 1 / cells)
    for t, s in itertools.pairwise(times):
        variance = float(t) ** 2 - float(s) ** 2
        start = y + variance * np.asarray(score(jnp.asarray(y), float(t)))
        step = images(start[:, None], y[None], variance, 2)
        law = law @ (step / step.sum(axis=1, keepdims=True))
    return y, law


def density(y):
    return 1 + FIRST * np.cos(np.pi * y) + SECOND * np.cos(2 * np.pi * y)


def steps(count):
    """Times that are closer where there is little noise."""
    return TOP * np.linspace(1.0, 0.0, count + 1) ** 1.3


def test_the_reverse_law_is_exact_to_order_one(x64):
    """Total variation of Euler's law to the data's: halved by twice the steps."""
    score = jax.jit(Score(1.0))

    def distance(count):
        y, law = chain(score, steps(count))
        return np.abs(law - density(y) / y.size).sum() / 2

    coarse, fine = distance(40), distance(80)
    assert fine < 0.01
    assert abs(fine / coarse - 0.5) < 0.02


class Given(NamedTuple):
    """Noise that is what the test says."""

    z: jax.Array

    def increment(self, t, s):
        return self.z


def test_a_step_is_euler_s(x64):
    """x + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) z, folded; by hand."""
    x, z, t, s = jnp.array([0.3, 0.9]), jnp.array([-0.4, 1.2]), 0.8, 0.5
    stepper, score = guide.reflected_euler(R), Score(1.0)
    state, info = stepper.step(score, Given(z), stepper.init(x), t, s)
    slope = np.asarray(score(x, t))
    moved = np.asarray(x) + 0.39 * slope + np.sqrt(0.39) * np.asarray(z)
    np.testing.assert_allclose(state.x, [abs(moved[0]), 2 - moved[1]], rtol=1e-12)
    np.testing.assert_allclose(info.score, slope)
    again = R.renoise(Given(z), x, s, t)  # and the way ahead, exactly
    ahead = np.asarray(x) + np.sqrt(0.39) * np.asarray(z)
    np.testing.assert_allclose(again, [abs(ahead[0]), 2 - ahead[1]], rtol=1e-12)


def test_samples_have_the_law_of_the_steps(key):
    """Two coordinates in twenty bins each, |z| < 4 against the grid; none is outside."""
    plan = sampler.plan(P, steps(30))
    start = jax.random.uniform(jax.random.key(1), (20_000, 2))
    x = np.asarray(sampler.sample(key, guide.reflected_euler(R), Score(1.0), plan, start).x)
    assert np.sum((x < 0) | (x > 1)) == 0
    _, law = chain(jax.jit(Score(1.0)), plan.times)
    wanted = law.reshape(20, -1).sum(axis=1)
    for column in x.T:
        counts = np.histogram(column, bins=20, range=(0, 1))[0]
        error = np.sqrt(wanted * (1 - wanted) * len(x))
        assert np.abs((counts - len(x) * wanted) / error).max() < 4
    assert abs(np.corrcoef(x.T)[0, 1]) < 4 / np.sqrt(len(x))


def test_the_uniform_law_stays(key):
    """Without a score Euler's steps are the process itself, back as ahead."""
    start = jax.random.uniform(jax.random.key(1), (20_000, 1))
    for plan in (sampler.plan(P, steps(5)), sampler.restart(sampler.karras(P, 4), (0.1, 1.0), 1)):
        x = sampler.sample(key, guide.reflected_euler(R), Score(0.0), plan, start).x
        counts = np.histogram(np.asarray(x), bins=20, range=(0, 1))[0]
        assert np.abs((counts - len(x) / 20) / np.sqrt(len(x) * 0.05 * 0.95)).max() < 4


def network(params, x, t, cond):
    return Score(params)(x, t)


def test_the_loss_is_least_at_the_marginal_s_score(key):
    """Its slope in a factor of the exact score is 0 there: |z| < 4; and not at 0.9 of it."""
    grid = (np.arange(4000) + 0.5) / 4000
    x = np.random.default_rng(0).choice(grid, (20_000, 1), p=density(grid) / grid.size)
    loss = jax.jit(guide.reflected_denoising(R, network))

    def slope(at):
        up, down = (loss(at + h, key, (jnp.asarray(x, jnp.float32), None))[1] for h in (0.1, -0.1))
        slopes = np.asarray(up.loss - down.loss, np.float64)
        return slopes.mean() / (slopes.std() / np.sqrt(slopes.size))

    assert abs(slope(1.0)) < 4
    assert slope(0.8) < -4


def of_one_point(params, x, t, cond):
    return params * R.score(jnp.array([0.3]), x, t)


def test_the_loss_of_one_point_is_nothing_at_its_kernel_s_score(key):
    """And the squared score by sigma^2 without a network, the noise's square where it is small."""
    loss = jax.jit(guide.reflected_denoising(R, of_one_point))
    x = jnp.full((4000, 1), 0.3)
    value, info = loss(1.0, key, (x, None))
    assert value < 1e-10
    free = loss(0.0, key, (x, None))[1].loss
    kept = np.asarray(info.t) < 0.06  # five deviations from the wall
    spread = np.sqrt(2 / kept.sum())
    assert abs(np.asarray(free)[kept].mean() - 1) < 4 * spread
    np.testing.assert_allclose(loss(1.1, key, (x, None))[1].loss, 0.01 * free, rtol=1e-3, atol=1e-9)


def test_it_compiles_once(key):
    chex.clear_trace_counter()
    plan = sampler.karras(P, 3)

    @jax.jit
    @chex.assert_max_traces(1)
    def draw(keys, stepper, score, x):
        return jax.vmap(lambda key: sampler.sample(key, stepper, score, plan, x).x)(keys)

    for top in (1.5, 2.0):
        stepper = guide.reflected_euler(guide.reflected(process.gaussian(process.edm(0.002, top))))
        got = draw(jax.random.split(key), stepper, Score(top), jnp.full((3, 2), 0.4))
    assert got.shape == (2, 3, 2)
    assert stepper.calls(1.0, 0.5) == 1
    assert (R.t_min, R.t_max) == (P.t_min, P.t_max)


def test_bad_input():
    with pytest.raises(ValueError, match="alpha must be 1"):
        guide.reflected(process.gaussian(process.cosine()))
    with pytest.raises(ValueError, match="noise must be white"):
        guide.reflected(process.gaussian(process.edm(), core.dense(jnp.eye(2))))
    np.testing.assert_allclose(guide.fold(jnp.array([-0.3, 1.2, 2.5])), [0.3, 0.8, 0.5], rtol=1e-6)
