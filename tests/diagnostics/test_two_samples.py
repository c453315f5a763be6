"""Two samples, or a sample and a density, against closed forms and other people's arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxinf import diagnostics

MEAN, ROOT, BANDWIDTH = np.array([0.4, -0.2]), np.array([[1.3, 0.0], [0.5, 0.6]]), 0.8


def expected_kernel(mean, covariance):
    """E k(x, y) for x - y ~ N(mean, covariance)."""
    wide = covariance + BANDWIDTH**2 * np.eye(len(mean))
    power = np.linalg.det(wide / BANDWIDTH**2) ** -0.5
    return power * np.exp(-mean @ np.linalg.solve(wide, mean) / 2)


def test_mmd_is_the_sum_over_pairs(x64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(6, 3)) + 1
    h = np.median([np.linalg.norm(a - b) for i, a in enumerate([*x, *y]) for b in [*x, *y][:i]])

    def mean(a, b, apart):
        values = [
            np.exp(-np.sum((p - q) ** 2) / (2 * h**2))
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not apart or i != j
        ]
        return np.mean(values)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    found = jax.jit(diagnostics.mmd)(jnp.asarray(x), jnp.asarray(y))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(diagnostics.median_distance(jnp.asarray(x), jnp.asarray(y)), h)
    np.testing.assert_allclose(
        diagnostics.mmd(jnp.asarray(x), jnp.asarray(y), float(h)), expected, rtol=1e-12
    )


@pytest.mark.parametrize("same", [True, False])
def test_mmd_is_unbiased_for_gaussians(same):
    root, mean = (np.eye(2), np.zeros(2)) if same else (ROOT, MEAN)
    covariance = root @ root.T
    expected = (
        expected_kernel(np.zeros(2), 2 * np.eye(2))
        + expected_kernel(np.zeros(2), 2 * covariance)
        - 2 * expected_kernel(mean, np.eye(2) + covariance)
    )
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2000, 20, 2)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(2000, 30, 2)) @ root.T + mean, jnp.float32)
    found = np.asarray(jax.jit(jax.vmap(lambda x, y: diagnostics.mmd(x, y, BANDWIDTH)))(x, y))
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(found))
    assert (expected == 0) == same
    assert not same or found.min() < 0


def test_permutations_give_uniform_p_values_or_small_ones(key):
    rng = np.random.default_rng(2)
    x, y = (jnp.asarray(rng.normal(size=(200, 16, 2)), jnp.float32) for _ in range(2))
    run = jax.jit(jax.vmap(lambda *a: diagnostics.mmd_test(*a, permutations=99)))
    keys = jax.random.split(key, 200)
    found = run(keys, x, y)
    # A permutation's p-value is uniform on i / 100.
    assert stats.kstest(np.asarray(found.p_value) - 0.005, "uniform").pvalue > 1e-3
    assert float(found.p_value.min()) > 0.0099
    np.testing.assert_allclose(found.statistic, jax.vmap(diagnostics.mmd)(x, y), atol=1e-6)
    shifted = run(keys, x, y + 2)
    assert float(shifted.p_value.max()) <= 0.02


def test_a_classifier_finds_what_bayes_rule_does(key):
    """1/2 for one law, and Phi(delta / 2) for a shift, both within the binomial error."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 500, 2))
    error = 4 * np.sqrt(0.25 / 1000)
    assert abs(diagnostics.c2st(key, x, y) - 0.5) < error
    shifted = diagnostics.c2st(key, x, y + np.array([[2.0, 0.0]]))
    assert abs(shifted - stats.norm.cdf(1)) < error
    far = diagnostics.c2st(key, x[:40], y[:40] + 100)
    assert far == 1


def test_another_classifier_and_folds(key):
    from sklearn.naive_bayes import GaussianNB

    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 400, 3))
    found = diagnostics.c2st(key, x, 3 * y, folds=4, classifier=GaussianNB())
    # The likelihood ratio of N(0, I) and N(0, 9 I) in three dimensions, on |x|^2.
    edge = 3 * np.log(9) / (1 - 1 / 9)
    best = (stats.chi2.cdf(edge, 3) + stats.chi2.sf(edge / 9, 3)) / 2
    assert abs(found - best) < 4 * np.sqrt(best * (1 - best) / 800)


def test_the_stein_kernel_is_the_operator_on_both_sides(x64):
    """Its four terms by automatic differentiation of the kernel, at a score that is no gradient."""
    rng = np.random.default_rng(5)
    x, scores = (jnp.asarray(rng.normal(size=(5, 3))) for _ in range(2))

    def k(x, y):
        return (0.7**2 + jnp.sum(jnp.square(x - y))) ** -0.3

    def u(x, y, s, t):
        left, right = jax.grad(k, 0)(x, y), jax.grad(k, 1)(x, y)
        trace = jnp.trace(jax.jacfwd(jax.grad(k, 0), 1)(x, y))
        return s @ t * k(x, y) + s @ right + t @ left + trace

    kernel = np.array([[u(a, b, s, t) for b, t in zip(x, scores, strict=True)]
                       for a, s in zip(x, scores, strict=True)])  # fmt: skip
    found = diagnostics.kernel_stein_discrepancy(x, scores, scale=0.7, exponent=-0.3)
    np.testing.assert_allclose(found.v_statistic, kernel.mean(), rtol=1e-10)
    others = kernel[~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(found.u_statistic, others.mean(), rtol=1e-10)


@pytest.mark.parametrize(("mean", "width"), [(0.0, 1.0), (0.5, 1.0), (0.2, 0.6)])
def test_the_stein_discrepancy_of_a_normal_law(mean, width):
    """E (s_p - s_q)(x) k(x, y) (s_p - s_q)(y) under q, by quadrature (Liu, theorem 3.6)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    x, weights = mean + width * nodes, weights / weights.sum()
    gap = -x + (x - mean) / width**2
    kernel = (1 + np.square(x[:, None] - x[None])) ** -0.5
    expected = (weights * gap) @ kernel @ (weights * gap)
    rng = np.random.default_rng(6)
    draws = jnp.asarray(mean + width * rng.normal(size=(3000, 25, 1)), jnp.float32)
    found = jax.jit(jax.vmap(diagnostics.kernel_stein_discrepancy))(draws, -draws)
    u = np.asarray(found.u_statistic)
    assert abs(u.mean() - expected) < 4 * u.std() / np.sqrt(len(u))
    assert (expected < 1e-12) == (mean == 0)
    assert float(found.v_statistic.min()) >= -1e-6


def test_signs_tell_a_law_from_another(key):
    rng = np.random.default_rng(7)
    x = jnp.asarray(rng.normal(size=(300, 60, 2)), jnp.float32)
    keys = jax.random.split(key, 300)
    run = jax.jit(jax.vmap(lambda *a: diagnostics.kernel_stein_test(*a, replicates=199)))
    p = np.asarray(run(keys, x, -x).p_value)
    # The signs' law is exact only as n grows: held to 10 per cent of false alarms and to half.
    for level in (0.1, 0.5):
        assert abs(np.mean(p <= level) - level) < 4 * np.sqrt(level * (1 - level) / 300)
    assert np.mean(np.asarray(run(keys, x + 0.7, -(x + 0.7)).p_value) <= 0.05) > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key, x: diagnostics.mmd(x, x[:, :1]), "leading axis counts"),
        (lambda key, x: diagnostics.mmd(x[:1], x), "at least 2 examples"),
        (lambda key, x: diagnostics.mmd(x, x, 0.0), "bandwidth must be positive"),
        (lambda key, x: diagnostics.mmd(x, x.at[0].set(jnp.inf)), "y holds 2 numbers"),
        (lambda key, x: diagnostics.mmd_test(key, x, x, permutations=0), "500 is usual"),
        (lambda key, x: diagnostics.c2st(key, x, x[:3]), "at least 5 examples"),
        (lambda key, x: diagnostics.c2st(key, x, x, folds=1), "folds must be"),
        (lambda key, x: diagnostics.c2st(key, x * 0, x), "do not vary"),
        (lambda key, x: diagnostics.kernel_stein_discrepancy(x, x[:, :1]), r"shape \(n, d\)"),
        (lambda key, x: diagnostics.kernel_stein_discrepancy(x, x, scale=-1.0), "scale must be"),
        (lambda key, x: diagnostics.kernel_stein_discrepancy(x, x, exponent=0.5), "-0.5 is usual"),
        (lambda key, x: diagnostics.kernel_stein_discrepancy(x, x / 0), "scores holds"),
        (lambda key, x: diagnostics.kernel_stein_test(key, x, x, replicates=0), "replicates"),
    ],
)
def test_what_is_wrong_is_said(call, message, key):
    x = jax.random.normal(key, (10, 2))
    with pytest.raises(ValueError, match=message):
        call(key, x)
