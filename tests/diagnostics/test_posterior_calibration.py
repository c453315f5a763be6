"""Calibration of the posterior of a normal mean: exact, too narrow, shifted, and the prior."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxinf import diagnostics

RUNS, DRAWS, NOISE = 2000, 199, 0.5
SHARE = 1 / (1 + NOISE**2)
VARIANCE = NOISE**2 * SHARE
"""Of the posterior of theta ~ N(0, 1) given x ~ N(theta, NOISE^2)."""


def posteriors(seed=0, width=1.0, shift=0.0, runs=RUNS):
    """True values, data, and draws of their posteriors in two dimensions."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(runs, 2))
    data = truth + NOISE * rng.normal(size=(runs, 2))
    spread = np.sqrt(VARIANCE) * width
    noise = rng.normal(size=(runs, DRAWS, 2)) + shift / width
    draws = SHARE * data[:, None] + spread * noise
    return tuple(jnp.asarray(a, jnp.float32) for a in (truth, data, draws))


def outside(ecdf, points):
    band = diagnostics.ecdf_band(RUNS, points)
    ecdf = np.asarray(ecdf, np.float64)
    return bool(np.any((ecdf < band.lower - 1e-6) | (ecdf > band.upper + 1e-6)))


@pytest.fixture(scope="module")
def exact():
    truth, _, draws = posteriors()
    return diagnostics.simulation_based_calibration(jax.random.key(0), truth, draws)


def test_an_exact_posterior_has_uniform_ranks(exact):
    assert float(exact.chi_square.min()) > 1e-3
    assert float(exact.kolmogorov_smirnov.min()) > 1e-3
    score = (np.asarray(exact.ranks).mean(0) - DRAWS / 2) / np.sqrt(((DRAWS + 1) ** 2 - 1) / 12)
    assert np.abs(score * np.sqrt(RUNS)).max() < 4
    assert not outside(exact.ecdf[:, 0], DRAWS)


def test_p_values_are_those_of_scipy(exact):
    counts = np.asarray(exact.counts)
    np.testing.assert_array_equal(counts.sum(0), RUNS)
    ranks = np.asarray(exact.ranks)
    np.testing.assert_array_equal(
        counts[:, 1], np.histogram(ranks[:, 1], np.arange(0, DRAWS + 2, 10))[0]
    )
    np.testing.assert_allclose(exact.chi_square, stats.chisquare(counts).pvalue, rtol=1e-4)
    reference = stats.kstest(np.asarray(exact.uniform)[:, 0], "uniform").pvalue
    np.testing.assert_allclose(exact.kolmogorov_smirnov[0], reference, atol=1e-3)
    np.testing.assert_array_equal(np.floor(np.asarray(exact.uniform) * (DRAWS + 1)), ranks)


def test_bins_that_do_not_divide_the_ranks_expect_what_they_hold(key):
    truth, _, draws = posteriors(1)
    found = diagnostics.simulation_based_calibration(key, truth, draws, thin=10, bins=7)
    assert int(found.ranks.max()) == DRAWS // 10
    sizes = [3, 3, 3, 3, 3, 3, 2]  # of 20 ranks r in bins floor(7 r / 20)
    np.testing.assert_allclose(found.expected, RUNS * np.array(sizes) / 20)
    reference = stats.chisquare(np.asarray(found.counts), RUNS * np.array(sizes)[:, None] / 20)
    np.testing.assert_allclose(found.chi_square, reference.pvalue, rtol=1e-4)


@pytest.mark.parametrize(("width", "shift"), [(0.7, 0.0), (1.4, 0.0), (1.0, 0.25)])
def test_wrong_posteriors_are_caught(width, shift, key):
    truth, _, draws = posteriors(2, width, shift)
    found = diagnostics.simulation_based_calibration(key, truth, draws)
    assert float(found.chi_square.max()) < 1e-6
    assert outside(found.ecdf[:, 0], DRAWS)
    if shift:
        assert float(found.kolmogorov_smirnov.max()) < 1e-6
        # P(z < z' + shift) of two normal draws about one mean.
        mean = stats.norm.cdf(-shift / np.sqrt(2)) * DRAWS
        error = DRAWS / 2 / np.sqrt(RUNS)
        assert np.abs(np.asarray(found.ranks).mean(0) - mean).max() < 4 * error


def test_ties_are_broken_by_chance(key):
    """Bernoulli parameters with their exact posterior: without it ranks are 0 or great."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 4000)
    data = np.where(rng.uniform(size=4000) < 0.8, truth, 1 - truth)
    draws = rng.uniform(size=(4000, 39)) < np.where(data == 1, 0.8, 0.2)[:, None]
    found = diagnostics.simulation_based_calibration(
        key, jnp.asarray(truth, jnp.float32), jnp.asarray(draws, jnp.float32)
    )
    assert float(found.chi_square) > 1e-3
    assert float(found.kolmogorov_smirnov) > 1e-3


def test_the_false_alarms_are_as_many_as_they_should_be():
    """p-values of 400 exact posteriors are uniform themselves."""
    truth, _, draws = posteriors(4, runs=20_000)
    truth, draws = truth.reshape(100, 200, 2), draws[:, :19].reshape(100, 200, 19, 2)
    keys = jax.random.split(jax.random.key(1), 100)
    run = jax.vmap(partial(diagnostics.simulation_based_calibration, bins=10))
    found = jax.jit(run)(keys, truth, draws)
    for p in (found.chi_square, found.kolmogorov_smirnov):
        assert stats.kstest(np.asarray(p).ravel(), "uniform").pvalue > 1e-3


def curve(credibility, width):
    """Expected coverage about N(0, I) points: their distance D from a posterior's mean, in its
    deviations, has D^2 = (2 - v) / v chi^2_2, and given D distances are noncentral chi^2."""
    share = (np.arange(400) + 0.5) / 400
    squares = ((2 - VARIANCE) / VARIANCE * stats.chi2.ppf(share, 2))[:, None]
    edge = width**2 * stats.ncx2.ppf(credibility[None], 2, squares / width**2)
    return stats.ncx2.cdf(edge, 2, squares).mean(0)


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_coverage_about_random_points_is_that_of_quadrature(width, key):
    truth, _, draws = posteriors(5, width)
    references = jax.random.normal(jax.random.key(9), truth.shape)
    found = diagnostics.tarp(key, truth, draws, references)
    alpha = np.asarray(found.credibility, np.float64)
    expected = curve(alpha, width)
    score = (found.coverage - expected) / np.sqrt(expected * (1 - expected) / RUNS)
    # The edge of a region of 199 draws is a random quantile, which averages out of the mean only
    # where the posterior is exact; elsewhere it moves the curve by O(1 / draws).
    assert np.abs(score).max() < 4
    off = np.abs(np.asarray(found.coverage) - alpha).max()
    if width == 1:
        assert off < 4 / np.sqrt(4 * RUNS)
        assert float(found.p_value) > 1e-3
        assert not outside(found.coverage, 49)
    else:
        assert abs(off - 0.21) < 4 / np.sqrt(4 * RUNS)
        assert float(found.p_value) < 1e-6


def test_the_prior_is_told_only_by_points_that_know_the_data(key):
    truth, data, _ = posteriors(6)
    draws = jax.random.normal(jax.random.key(3), (RUNS, DRAWS, 2))
    blind = jax.random.normal(jax.random.key(4), truth.shape)
    assert float(diagnostics.tarp(key, truth, draws, blind).p_value) > 1e-3
    assert float(diagnostics.tarp(key, truth, draws, data).p_value) < 1e-6


def test_the_shares_of_one_run_by_hand(key):
    truth = jnp.array([[1.0, 0.0], [0.0, 3.0]])
    draws = jnp.array([[[0.5, 0.0], [0.0, 2.0], [0.0, 0.2]], [[0.0, 1.0], [9.0, 9.0], [0.0, 2.0]]])
    found = diagnostics.tarp(key, truth, draws, jnp.zeros((2, 2)), points=3)
    np.testing.assert_array_equal(jnp.floor(found.shares * 4), [2, 2])
    np.testing.assert_allclose(found.coverage, [0, 0, 1])
    np.testing.assert_allclose(found.credibility, [0.25, 0.5, 0.75])


def test_tarp_under_jit_and_vmap(key):
    truth, data, draws = posteriors(7, runs=40)
    keys = jax.random.split(key, 2)
    parts = [a.reshape(2, 20, *a.shape[1:]) for a in (truth, draws, data)]
    mapped = jax.jit(jax.vmap(diagnostics.tarp))(keys, *parts)
    alone = diagnostics.tarp(keys[1], *(a[1] for a in parts))
    np.testing.assert_allclose(mapped.shares[1], alone.shares, rtol=1e-6)


TRUTH, SOME = jnp.zeros((30, 2)), jnp.ones((30, 19, 2))


@pytest.mark.parametrize(
    ("truth", "draws", "options", "message"),
    [
        (TRUTH, SOME[..., 0], {}, r"truth must have shape \(runs, ...\)"),
        (TRUTH[:1], SOME[:1], {}, "at least two runs"),
        (TRUTH, SOME.at[0, 0, 0].set(jnp.nan), {}, "draws holds 1 numbers that are not finite"),
        (TRUTH, SOME, {"bins": 21}, "20 ranks of 19 draws"),
        (TRUTH, SOME, {"thin": 0}, "thin must be at least 1"),
        (TRUTH, SOME, {"thin": 20}, "thin less"),
    ],
)
def test_what_is_wrong_is_said(truth, draws, options, message, key):
    with pytest.raises(ValueError, match=message):
        diagnostics.simulation_based_calibration(key, truth, draws, **options)


def test_references_must_be_one_for_every_run(key):
    with pytest.raises(ValueError, match=r"jnp\.broadcast_to repeats one"):
        diagnostics.tarp(key, TRUTH, SOME, jnp.zeros((30, 3)))
    with pytest.raises(ValueError, match="points must be"):
        diagnostics.tarp(key, TRUTH, SOME, TRUTH, points=0)
