"""Crank-Nicolson chains against a Gaussian posterior, and over the innovations of guided paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxinf import core, diagnostics, markov, mcmc, target

MEAN = np.array([1.0, -2.0])
COVARIANCE = np.array([[2.0, 0.6], [0.6, 0.5]])


def near(y, x):
    return jnp.sum(jax.scipy.stats.norm.logpdf(y, x[0] + 2 * x[1], 0.7))


def within(draws, wanted):
    """Whether chains [chains, draws, dim] have a mean, to four standard errors."""
    error = diagnostics.mcse(jnp.asarray(draws, jnp.float32))
    return np.all(np.abs(draws.mean(axis=(0, 1)) - wanted) < 4 * error)


def test_a_gaussian_posterior():
    prior = core.gaussian(jnp.asarray(MEAN), core.dense(jnp.asarray(COVARIANCE)))
    posterior = target.density(near, jnp.zeros(2), jnp.array([1.5]), prior=prior)
    run = mcmc.sample(
        jax.random.key(0), mcmc.crank_nicolson(), posterior, chains=8, warmup=200, draws=1000
    )
    row = np.array([1.0, 2.0])
    gain = COVARIANCE @ row / (row @ COVARIANCE @ row + 0.49)
    mean = MEAN + gain * (1.5 - row @ MEAN)
    left = COVARIANCE - np.outer(gain, row) @ COVARIANCE
    z = np.asarray(run.draws, np.float64)
    assert within(z, mean)
    assert within((z - mean) ** 2, np.diag(left))
    assert within((z[..., :1] - mean[0]) * (z[..., 1:] - mean[1]), left[0, 1])


def test_the_prior_is_left_as_it_is_by_any_step():
    """Without data everything is accepted, and a step of 2 is a new draw."""
    prior = core.gaussian(jnp.asarray(MEAN), core.dense(jnp.asarray(COVARIANCE)))
    nothing = target.density(lambda _, x: jnp.sum(0 * x), jnp.zeros(2), prior=prior)
    keys = jax.random.split(jax.random.key(1), 4000)
    start = jax.vmap(nothing.sample_prior)(keys)
    for step in (0.3, 2.0, 5.0):
        kernel = mcmc.crank_nicolson(step)

        def move(key, z, kernel=kernel):
            state, info = kernel.step(key, nothing, kernel.init(nothing, z))
            return state.z, info.acceptance

        z, acceptance = jax.vmap(move)(jax.random.split(jax.random.key(2), 4000), start)
        np.testing.assert_allclose(acceptance, 1, atol=1e-4)
        for i in range(2):
            law = stats.norm(MEAN[i], np.sqrt(COVARIANCE[i, i]))
            assert stats.kstest(np.asarray(z[:, i]), law.cdf).pvalue > 1e-3
        old = np.corrcoef(start[:, 0], z[:, 0])[0, 1]
        assert abs(old - (1 - step**2 / 4) / (1 + step**2 / 4)) < 4 / np.sqrt(4000)


SEEN = jnp.array([[0.9], [0.4], [1.2], [0.7], [1.6], [0.8]])


def space(slope):
    start = core.gaussian(jnp.zeros(1), core.Diagonal(jnp.ones(1)))
    move = markov.linear_gaussian(slope * jnp.eye(1), core.Diagonal(jnp.array([0.5])))
    see = markov.linear_gaussian(jnp.eye(1), core.Diagonal(jnp.array([0.4])))
    return markov.state_space(start, move, see)


def weight(back, z):
    """The log weight of a path guided by messages of a surrogate with another slope."""
    return markov.guided_path(z[1:, None], space(0.5 + 0.3 * z[0]), back)[1]


def test_white_noise_makes_weighted_paths():
    """The mean weight is the evidence, and weighted states have the smoother's moments."""
    model = space(0.5)
    back = markov.backward_filter(space(0.9), SEEN, surrogate=space(0.2))
    white = jax.random.normal(jax.random.key(4), (20_000, 6, 1))
    paths, log_weight = jax.vmap(lambda z: markov.guided_path(z, model, back))(white)
    filtered = markov.filter(model, SEEN)
    smoothed = markov.smooth(model, filtered)
    w = np.exp(np.asarray(log_weight - filtered.log_evidence[-1], np.float64))
    x = np.asarray(paths[..., 0], np.float64) - np.asarray(smoothed.mean[:, 0])
    square = np.asarray(smoothed.covariance.factor[:, 0, 0]) ** 2
    for off in ((w - 1)[:, None], w[:, None] * x, w[:, None] * (x**2 - square)):
        error = off.std(0) / np.sqrt(len(w))
        assert np.all(np.abs(off.mean(0)) < 4 * error)
        assert np.all(4 * error < 0.1)


def test_innovations_and_parameter_of_a_guided_path():
    """The parameter's posterior is that by Kalman's evidence on a grid."""
    white = core.gaussian(jnp.zeros(7), core.Diagonal(1.0))
    back = markov.backward_filter(space(0.9), SEEN, surrogate=space(0.2))
    posterior = target.density(weight, jnp.zeros(7), back, prior=white)
    grid = jnp.linspace(-4, 4, 201)
    slopes = 0.5 + 0.3 * grid
    evidence = jax.vmap(lambda slope: markov.filter(space(slope), SEEN).log_evidence[-1])(slopes)
    density = np.exp(np.asarray(evidence) - grid**2 / 2)
    mean = (density @ grid) / density.sum()
    square = (density @ grid**2) / density.sum()
    for kernel in (mcmc.crank_nicolson(), mcmc.hmc(3)):
        run = mcmc.sample(jax.random.key(3), kernel, posterior, chains=16, warmup=200, draws=500)
        z = np.asarray(run.draws[..., :1], np.float64)
        assert within(z, mean)
        assert within(z**2, square)


def test_bad_input_is_refused():
    flat = target.density(lambda _, x: -jnp.sum(x**2), jnp.zeros(2))
    with pytest.raises(TypeError, match=r"Gaussian prior.*random_walk"):
        mcmc.crank_nicolson().init(flat, jnp.zeros(2))
    with pytest.raises(ValueError, match="positive"):
        mcmc.crank_nicolson(0.0)
    back = markov.backward_filter(space(0.9), SEEN)
    with pytest.raises(ValueError, match="each of the 6 times"):
        markov.guided_path(jnp.zeros((5, 1)), space(0.9), back)
