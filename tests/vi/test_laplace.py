"""Laplace's approximation against Gaussians and one-dimensional expansions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_targets import normal, rotated
from scipy import special, stats

from jaxinf import target, vi


def counts(data, x):
    return jnp.sum(data[0] * x - data[1] * jnp.exp(x))


def rosenbrock(scale, x):
    return -scale * ((1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2)


def saddle(_, x):
    return -(x[0] ** 2) + x[1] ** 2 - x[1] ** 4 / 4


def test_a_gaussian_is_found_exactly(x64):
    mean, precision = np.array([3.0, -1.0, 0.2, 5.0]), rotated([1e-2, 0.5, 2.0, 50.0], 0)
    found = vi.laplace(normal(mean, precision, 1.3), jnp.full(4, -8.0))
    covariance = np.linalg.inv(precision)
    # rounding times the condition number 5e3, of numbers up to 100
    np.testing.assert_allclose(found.law.mean, mean, atol=1e-10)
    np.testing.assert_allclose(found.law.covariance.dense(4), covariance, rtol=1e-11, atol=1e-10)
    evidence = 1.3 + 2 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] / 2
    np.testing.assert_allclose(found.log_evidence, evidence, atol=1e-12)
    assert found.info.positive_definite
    assert found.info.converged
    np.testing.assert_allclose(found.info.smallest, 1e-2, rtol=1e-9)
    np.testing.assert_array_equal(found.law.covariance.factor, np.tril(found.law.covariance.factor))


@pytest.mark.parametrize("shape", [3.0, 30.0])
def test_the_evidence_of_a_gamma_variable_is_stirlings(x64, shape):
    """Integral of exp(a x - r e^x) is Gamma(a) / r^a; Laplace's is Stirling's, 1 / 12 a off."""
    data = jnp.array([shape]), jnp.array([2.0])
    found = vi.laplace(target.density(counts, jnp.zeros(1), data), jnp.zeros(1))
    np.testing.assert_allclose(found.law.mean[0], np.log(shape / 2), atol=1e-12)
    np.testing.assert_allclose(found.law.covariance.dense(1)[0, 0], 1 / shape, rtol=1e-12)
    off = special.gammaln(shape) - shape * np.log(2) - float(found.log_evidence)
    # Stirling's series alternates: the error lies between its first term and its first two
    assert 1 / (12 * shape) - 1 / (360 * shape**3) < off < 1 / (12 * shape)


def test_a_valley_is_walked_down(x64):
    found = vi.laplace(target.density(rosenbrock, jnp.zeros(2), 1.0), jnp.array([-1.2, 1.0]))
    np.testing.assert_allclose(found.law.mean, [1.0, 1.0], atol=1e-10)
    hessian = np.array([[802.0, -400.0], [-400.0, 200.0]])
    np.testing.assert_allclose(found.law.covariance.dense(2), np.linalg.inv(hessian), rtol=1e-9)
    assert found.info.converged
    assert found.info.steps < 100


def test_in_single_precision(key):
    mean, precision = np.array([3.0, -1.0], np.float32), rotated([0.5, 8.0], 1).astype(np.float32)
    found = vi.laplace(normal(mean, precision), jnp.zeros(2))
    np.testing.assert_allclose(found.law.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.law.covariance.dense(2), np.linalg.inv(precision), atol=1e-5)
    assert found.law.mean.dtype == jnp.float32
    assert found.info.converged
    draws = jax.vmap(found.law.sample)(jax.random.split(key, 2000))
    draws = np.asarray(draws)
    deviance = np.einsum("ni,ij,nj->n", draws - mean, precision, draws - mean)
    assert stats.kstest(deviance, stats.chi2(2).cdf).pvalue > 1e-4


def test_a_saddle_is_said(x64):
    """From the ridge the search stays on it, where the curvature is not a maximum's."""
    found = vi.laplace(target.density(saddle, jnp.zeros(2)), jnp.array([1.0, 0.0]))
    assert not found.info.positive_definite
    np.testing.assert_allclose(found.info.smallest, -2.0)
    assert np.isnan(found.log_evidence)
    # the mend: magnitudes of the curvatures
    np.testing.assert_allclose(found.law.covariance.dense(2), np.eye(2) / 2, atol=1e-12)
    found = vi.laplace(target.density(saddle, jnp.zeros(2)), jnp.array([1.0, 0.1]))
    assert found.info.positive_definite
    np.testing.assert_allclose(found.law.mean, [0.0, np.sqrt(2)], atol=1e-10)


def test_what_did_not_end_is_said(x64):
    rising = target.density(lambda _, x: jnp.sum(x), jnp.zeros(2))
    found = vi.laplace(rising, jnp.zeros(2), steps=5)
    assert not found.info.converged
    assert not found.info.positive_definite
    nowhere = target.density(lambda _, x: jnp.sum(jnp.log(x)), jnp.zeros(2))
    assert not vi.laplace(nowhere, -jnp.ones(2)).info.converged


def test_compiled_once_and_in_batches():
    data = jnp.array([[1.0], [5.0]]), jnp.array([[1.0], [2.0]])

    def run(shape, rate, start):
        posterior = target.density(counts, jnp.zeros(1), (shape, rate))
        return vi.laplace(posterior, start)

    once = jax.jit(chex.assert_max_traces(run, n=1))
    starts = jnp.array([[0.0], [3.0]])
    alone = [once(a, b, z) for a, b, z in zip(*data, starts, strict=True)]
    together = jax.vmap(run)(*data, starts)
    for i, one in enumerate(alone):
        np.testing.assert_allclose(together.law.mean[i], one.law.mean, atol=1e-5)
        np.testing.assert_allclose(together.log_evidence[i], one.log_evidence, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"start": jnp.zeros(3)}, ValueError, "start must have shape"),
        ({"steps": 0}, ValueError, "steps must be"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be positive"),
        ({"target": 3}, TypeError, "no log_prob"),
    ],
)
def test_what_is_wrong_is_said(change, error, message):
    given = {"target": normal(jnp.zeros(2), jnp.eye(2)), "start": jnp.zeros(2)} | change
    with pytest.raises(error, match=message):
        vi.laplace(**given)
