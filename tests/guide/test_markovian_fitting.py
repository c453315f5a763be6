"""Markovian fitting of Gaussian ends: the exact projection's figures, and learnt ones beside it."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinf import core, guide

LINEAR = optax.adam(optax.exponential_decay(0.03, 400, 0.3))


def normal(mean, deviation, d=1):
    return core.gaussian(jnp.full(d, mean), core.Diagonal(jnp.full(d, deviation)))


def crosses(bridges):
    """Return each projection's cross covariance in one dimension, in order."""
    found = []
    for i in range(jax.tree.leaves(bridges.rounds.forward)[0].shape[0]):
        for way, law in (("backward", bridges.backward.law), ("forward", bridges.forward.law)):
            matrices = np.asarray(getattr(bridges.rounds, way).matrix[i, :, 0, 0])
            found.append(np.prod(matrices) * float(law.covariance.dense(1)[0, 0]))
    return np.array(found)


def recursion(c, variance, points, iterations, eps=1.0):
    """The cross covariance of D-IMF of one number from N(0, 1), by products of scalars."""
    times, found = np.arange(points + 2) / (points + 1), []
    for _ in range(iterations):

        def cov(s, t, c=c):
            return (
                (1 - s) * (1 - t) + s * t * variance + ((1 - s) * t + s * (1 - t)) * c
                + eps * s * (1 - t)
            )  # fmt: skip

        c = np.prod([cov(t, s) / cov(t, t) for t, s in itertools.pairwise(times)])
        found.append(c)
    return np.array(found)


@pytest.mark.parametrize("points", [1, 3, 7])
@pytest.mark.parametrize(("variance", "wanted"), [(1.0, 0.618034), (4.0, 1.561553)])
def test_the_exact_projection_converges_to_the_bridge(x64, key, points, variance, wanted):
    """To the closed form's cross covariance, through the scalar recursion's values."""
    start, end = normal(0.0, 1.0), normal(3.0, variance**0.5)
    projection = guide.gaussian_projection(points)
    bridges = guide.markovian_fitting(key, start, end, projection, rounds=40)
    found = crosses(bridges)
    np.testing.assert_allclose(found, recursion(0.0, variance, points, 80), atol=1e-12)
    np.testing.assert_allclose(found[-1], wanted, atol=5e-7)
    if variance == 1 and points in (1, 3):
        np.testing.assert_allclose(found[4], {1: 0.6041, 3: 0.6171}[points], atol=5e-5)


def test_the_exact_projection_in_three_dimensions(x64, key):
    """Its transitions become the bridge's own; the ends' laws are kept."""
    rng = np.random.default_rng(5)
    roots = rng.normal(size=(2, 3, 3))
    start, end = (
        core.gaussian(jnp.asarray(m), core.dense(jnp.asarray(r @ r.T / 3 + 0.5 * np.eye(3))))
        for m, r in zip(rng.normal(size=(2, 3)), roots, strict=True)
    )
    exact = guide.gaussian_schrodinger(start, end, 0.8)
    projection = guide.gaussian_projection(3, 0.8)
    bridges = guide.markovian_fitting(key, start, end, projection, rounds=150)
    kernels = bridges.forward.params
    for k in range(4):
        wanted = exact.transition(k / 4, (k + 1) / 4)
        np.testing.assert_allclose(kernels.matrix[k], wanted.matrix, atol=1e-8)
        np.testing.assert_allclose(kernels.offset[k], wanted.offset, atol=1e-8)
        cov = wanted.root @ wanted.root.T
        np.testing.assert_allclose(kernels.root[k] @ kernels.root[k].T, cov, atol=1e-8)


def test_the_reference_as_first_coupling_is_proportional_fitting(x64, key):
    """From the reference the backward process is the reference's own, reversed, from the end."""
    start, end = normal(0.0, 1.0), normal(1.0, 1.5)
    projection = guide.gaussian_projection(2)
    coupling = guide.Noised(start, 1.0)
    bridges = guide.markovian_fitting(key, start, end, projection, rounds=1, coupling=coupling)
    # x_0 given x_1 = N(x_1 / 2, 1 / 2) under the reference
    gain = np.prod(np.asarray(bridges.rounds.backward.matrix[0, :, 0, 0]))
    np.testing.assert_allclose(gain, 0.5, atol=1e-12)


def test_walks_have_the_law_of_their_kernels(key):
    """Draws of the exact process: moments of path and pair within 4 standard errors."""
    start, end = normal(0.0, 1.0), normal(2.0, 2.0)
    projection = guide.gaussian_projection(3)
    walked = guide.markovian_fitting(key, start, end, projection, rounds=8).forward
    count = 20_000
    keys = jax.random.split(key, count)
    x = jax.vmap(start.sample)(jax.random.split(jax.random.key(5), count))
    path = np.asarray(jax.jit(jax.vmap(walked.path))(keys, x))[..., 0]
    exact = guide.gaussian_schrodinger(start, end)
    for k in (0, 2, 4):
        law = exact.marginal(k / 4)
        mean, variance = float(law.mean[0]), float(law.covariance.dense(1)[0, 0])
        assert abs(path[:, k].mean() - mean) < 4 * np.sqrt(variance / count)
        assert abs(path[:, k].var() - variance) < 4 * variance * np.sqrt(2 / count)
    np.testing.assert_array_equal(jax.vmap(walked.walk)(keys, x)[:, 0], path[:, -1])
    product = path[:, 0] * (path[:, -1] - 2)
    assert abs(product.mean() - 1.561553) < 4 * product.std() / np.sqrt(count) + 1e-3


def test_a_brownian_bridge_drawn_twice_is_one(x64, key):
    """Over two steps as over one: mean and variance, with 4 standard errors."""
    x, end, count = jnp.array([1.0]), jnp.array([-2.0]), 40_000

    def twice(key):
        first, second = jax.random.split(key)
        middle = guide.brownian_bridge(first, x, end, 0.2, 0.5, 0.7)
        return guide.brownian_bridge(second, middle, end, 0.5, 0.9, 0.7)[0]

    found = np.asarray(jax.vmap(twice)(jax.random.split(key, count)))
    variance = 0.7 * (0.7 * 0.1) / 0.8
    assert abs(found.mean() - (1 - 3 * 0.7 / 0.8)) < 4 * np.sqrt(variance / count)
    assert abs(found.var() - variance) < 4 * variance * np.sqrt(2 / count)
    np.testing.assert_array_equal(guide.brownian_bridge(key, x, end, 0.2, 1.0, 0.7), end)


@dataclass(frozen=True)
class Affine:
    """A network of one's own: an affine map of x with coefficients cubic in its time."""

    def init(self, key, x):
        return jnp.zeros((x.size, x.size + 1, 4))

    def apply(self, params, x, t, cond=None):
        powers = (t / 2.5) ** jnp.arange(4)
        return params @ powers @ jnp.concatenate([x, jnp.ones(1)])


def slope(walked):
    """The slope of E[x_1 | x_0], exact for affine steps."""
    return jax.grad(lambda x: walked.walk(jax.random.key(0), x)[0])(jnp.zeros(1))[0]


def test_regressions_converge_to_the_bridge():
    """The mean of four runs within 4 standard errors of the closed form, in both directions."""
    start, end = normal(-1.0, 1.0), normal(1.0, 2.0)
    adam = optax.adam(optax.exponential_decay(0.1, 500, 0.1))
    budget = guide.budget(pools=1, pool=3200, epochs=4, batch=64)
    projection = guide.regression_projection(Affine(), adam, budget=budget)

    @jax.jit
    @jax.vmap
    def run(key):
        bridges = guide.markovian_fitting(key, start, end, projection, rounds=6)
        x = jax.vmap(bridges.forward.sample)(jax.random.split(key, 1000))[1][:, 0]
        skipped = jnp.sum(bridges.rounds.forward_info.skipped).astype(float)
        return jnp.array(
            [slope(bridges.forward), slope(bridges.backward), x.mean(), x.std(), skipped]
        )

    found = np.asarray(run(jax.random.split(jax.random.key(1), 4)))
    wanted = np.array([1.561553, 1.561553 / 4, 1.0, 2.0, 0.0])
    error = found.std(axis=0, ddof=1) / 2
    assert (error < [0.05, 0.02, 0.1, 0.1, 1e-9]).all()
    # of three degrees of freedom: 7.5 errors where a normal law has 4 at the same chance
    assert (np.abs(found.mean(axis=0) - wanted) <= 7.5 * error).all(), (found, wanted)
