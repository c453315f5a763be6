"""Uniform numbers: Kolmogorov's law by SciPy, and the band's coverage by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxinf import diagnostics
from jaxinf.diagnostics.kolmogorov_smirnov import _tail


def test_the_limit_law_is_that_of_scipy(x64):
    x = jnp.linspace(0.2, 5, 200)
    np.testing.assert_allclose(_tail(x), special.kolmogorov(x), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(("n", "error"), [(10, 3e-3), (100, 3e-4), (500, 6e-5)])
def test_the_correction_is_of_second_order(n, error, x64):
    """What is left of 1/n falls faster than 1/n, here ten times from 10 to 100."""
    u = jnp.asarray(np.random.default_rng(n).uniform(size=(n, 30)) ** np.linspace(0.6, 1.5, 30))
    exact = [stats.kstest(column, "uniform", method="exact").pvalue for column in np.asarray(u).T]
    found = jax.jit(diagnostics.kolmogorov_smirnov)(u)
    np.testing.assert_allclose(found, exact, atol=error)
    assert np.ptp(found) > 0.5


@pytest.mark.parametrize(("runs", "points", "level"), [(4, 3, 0.6), (3, 5, 0.8), (6, 2, 0.95)])
def test_the_band_by_all_outcomes(runs, points, level):
    """Binomial quantiles at the greatest of all tails for which enough outcomes lie within."""
    z = np.arange(1, points + 1) / (points + 1)
    ranks = np.array(list(itertools.product(range(points + 1), repeat=runs)))
    ecdf = np.sum(ranks[:, :, None] < np.arange(1, points + 1), axis=1)
    cdf = np.array([stats.binom.cdf(np.arange(runs + 1), runs, point) for point in z])
    jumps = np.unique(np.concatenate([[0.0], cdf[cdf < 0.5].round(12)]))
    best = None
    for tail in (jumps[1:] + jumps[:-1]) / 2:
        lower, upper = np.argmax(cdf >= tail, axis=1), np.argmax(cdf >= 1 - tail, axis=1)
        coverage = np.mean(np.all((ecdf >= lower) & (ecdf <= upper), axis=1))
        if coverage >= level:
            best = lower / runs, upper / runs, coverage
    band = diagnostics.ecdf_band(runs, points, level)
    np.testing.assert_allclose(band.lower, best[0])
    np.testing.assert_allclose(band.upper, best[1])
    np.testing.assert_allclose(band.coverage, best[2], rtol=1e-12)
    np.testing.assert_allclose(band.points, z)


def test_a_large_band_by_simulation():
    band = diagnostics.ecdf_band(100, 30, 0.9)
    counts = np.random.default_rng(0).multinomial(100, np.full(31, 1 / 31), 20_000)
    ecdf = np.cumsum(counts, axis=1)[:, :-1]
    within = (ecdf >= band.lower * 100 - 0.5) & (ecdf <= band.upper * 100 + 0.5)
    inside = np.mean(np.all(within, axis=1))
    assert abs(inside - band.coverage) < 4 * np.sqrt(band.coverage * (1 - band.coverage) / 20_000)
    assert band.coverage >= 0.9


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="at least two numbers"):
        diagnostics.kolmogorov_smirnov(jnp.zeros(1))
    with pytest.raises(ValueError, match="1 numbers that are not finite"):
        diagnostics.kolmogorov_smirnov(jnp.array([0.1, jnp.nan]))
    with pytest.raises(ValueError, match=r"0\.95 is usual"):
        diagnostics.ecdf_band(10, 5, 95.0)
    with pytest.raises(ValueError, match="at least 1"):
        diagnostics.ecdf_band(0, 5)
