"""Pathfinder against Gaussians and a banana, its covariances against BFGS's own recursion."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_targets import banana, normal, rotated
from scipy import stats

from jaxinf import core, target, vi


@pytest.mark.parametrize(("dim", "memory"), [(4, 6), (5, 3)])
def test_covariances_are_bfgs(x64, dim, memory):
    """The factored form of the pairs is the recursion of BFGS on dense matrices."""
    rng = np.random.default_rng(0)
    hessian = rotated(np.linspace(1, 9, dim), 1)
    pairs, kept = vi.Pairs.empty(jnp.zeros(dim), memory), []
    for count in range(1, 6):
        step = rng.normal(size=dim)
        slope = hessian @ step + 0.3 * rng.normal(size=dim)
        pairs, taken = vi.remember(pairs, jnp.asarray(step), jnp.asarray(slope))
        assert taken == (slope @ step > 0)
        kept = [*kept, (step, slope)][-memory:] if taken else kept
        wanted = np.diag(np.asarray(pairs.diagonal))
        for s, z in kept:
            left = np.eye(dim) - np.outer(s, z) / (s @ z)
            wanted = left @ wanted @ left.T + np.outer(s, s) / (s @ z)
        found = vi.inverse_hessian(pairs)
        np.testing.assert_allclose(found.dense(dim), wanted, atol=1e-11, err_msg=str(count))
        np.testing.assert_allclose(found.matvec(jnp.asarray(slope)), wanted @ slope, atol=1e-10)
    # a pair of negative curvature is left out
    again, taken = vi.remember(pairs, jnp.ones(dim), -jnp.ones(dim))
    assert not taken
    chex.assert_trees_all_equal(again, pairs)
    # and one of a curvature below 1e-12 of the slope's square
    none, slope = vi.Pairs.empty(jnp.zeros(dim), memory), jnp.zeros(dim).at[0].set(1.0)
    for curvature, taken in ((5e-13, False), (5e-12, True)):
        assert vi.remember(none, jnp.ones(dim).at[0].set(curvature), slope)[1] == taken


def test_the_diagonal_is_the_papers(x64):
    """A pair's diagonal update keeps its trace along the step: alpha' solves the weak secant."""
    rng = np.random.default_rng(3)
    alpha, step = rng.uniform(0.5, 2, 4), rng.normal(size=4)
    slope = step * rng.uniform(0.5, 2, 4)
    pairs = vi.Pairs.empty(jnp.zeros(4), 2)._replace(diagonal=jnp.asarray(alpha))
    found, _ = vi.remember(pairs, jnp.asarray(step), jnp.asarray(slope))
    # the diagonal of BFGS's Hessian, scaled to Gilbert and Lemarechal's quotient
    b = slope @ step
    ratio = (slope @ (alpha * slope)) / b
    hessian = ratio / alpha - ratio * (step / alpha) ** 2 / (step @ (step / alpha)) + slope**2 / b
    np.testing.assert_allclose(1 / found.diagonal, hessian, rtol=1e-12)


def test_the_covariance_is_one(x64, key):
    """Its six products agree with its dense matrix."""
    rng = np.random.default_rng(1)
    pairs = vi.Pairs.empty(jnp.zeros(5), 2)
    for _ in range(2):
        step = jnp.asarray(rng.normal(size=5))
        pairs, _ = vi.remember(pairs, step, jnp.asarray(rotated(np.arange(1.0, 6.0), 2)) @ step)
    held, x = vi.inverse_hessian(pairs), jnp.asarray(rng.normal(size=5))
    dense = np.asarray(held.dense(5))
    assert isinstance(held, core.Covariance)
    np.testing.assert_allclose(held.precision(x), np.linalg.solve(dense, x), atol=1e-11)
    np.testing.assert_allclose(held.sqrt(held.whiten(x)), x, atol=1e-12)
    np.testing.assert_allclose(held.sqrt(held.sqrt_transpose(x)), dense @ x, atol=1e-12)
    np.testing.assert_allclose(held.scaled(-2.0).dense(5), 4 * dense, atol=1e-12)
    law = core.Gaussian(x, held)
    wanted = stats.multivariate_normal(np.asarray(x), dense)
    at = law.sample(key)
    np.testing.assert_allclose(law.log_prob(at), wanted.logpdf(at), atol=1e-11)


def test_a_gaussian_is_found_exactly(x64, key):
    """Lines searched to their end are conjugate: after dim steps the estimate is the inverse."""
    mean, precision = np.array([3.0, -1.0, 0.2]), rotated([0.5, 2.0, 9.0], 0)
    found = vi.pathfinder(
        key, normal(mean, precision, 1.3), jnp.full(3, -4.0), steps=8, curvature=1e-7
    )
    evidence = 1.3 + 1.5 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] / 2
    # conjugate to 1e-7 of a slope, times the condition number 18
    np.testing.assert_allclose(found.law.mean, mean, atol=2e-6)
    np.testing.assert_allclose(
        found.law.covariance.dense(3), np.linalg.inv(precision), atol=2e-6, rtol=2e-6
    )
    np.testing.assert_allclose(found.bound, evidence, atol=1e-5)


def test_a_gaussian_is_close_by_with_the_usual_search(key):
    """The divergence that the bound shows is the one that there is."""
    mean, precision = np.arange(10.0, dtype=np.float32), rotated(np.geomspace(1, 20, 10), 4)
    posterior = normal(mean, jnp.asarray(precision, jnp.float32))
    found = vi.pathfinder(key, posterior, jnp.full(10, -5.0), draws=100)
    covariance = np.asarray(found.law.covariance.dense(10), np.float64)
    values = np.linalg.eigvals(covariance @ precision).real - 1
    off = np.asarray(found.law.mean) - mean
    kl = 0.5 * (np.sum(values - np.log1p(values)) + off @ precision @ off)
    evidence = 5 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] / 2
    # of log p - log q: half the squared deviations' variance, and what the mean is off
    error = np.sqrt((np.sum(values**2) / 2 + off @ precision @ off) / 100)
    # the greatest of up to 60 estimates is above its own by 4 standard errors at most, and a sixth
    assert abs(float(found.bound) - evidence + kl) < 5 * error
    unit = np.linalg.eigvalsh(precision) - 1
    assert kl < 0.1 * np.sum(unit - np.log1p(unit)) / 2


def test_a_mild_banana_is_close_by(key):
    """No Gaussian is better than the best; the taken one is near it, and its bound below log Z."""
    posterior = target.density(banana, jnp.zeros(2), 0.15)
    found = vi.pathfinder(key, posterior, jnp.array([2.0, -3.0]), draws=200)
    z = jax.vmap(found.law.sample)(jax.random.split(jax.random.key(1), 20_000))
    weights = jax.vmap(lambda z: posterior.log_prob(z) - found.law.log_prob(z))(z)
    bound, error = weights.mean(), weights.std() / np.sqrt(20_000)
    best = vi.forward_backward(
        key, posterior, core.gaussian(jnp.zeros(2), core.dense(jnp.eye(2))), 200, 0.1,
        stochastic=False,
    ).law  # fmt: skip
    top = jax.vmap(lambda z: posterior.log_prob(z) - best.log_prob(z))(
        jax.vmap(best.sample)(jax.random.split(jax.random.key(2), 20_000))
    )
    assert bound < top.mean() + 4 * np.hypot(error, top.std() / np.sqrt(20_000))
    # that of Laplace's Gaussian, to which the path leads, is -6 bend^2; the greatest of the path's
    # estimates is no smaller, and no greater than its own bound, up to their noise
    noise = error * np.sqrt(20_000 / 200)
    assert found.bound > -6 * 0.15**2 - 4 * noise
    assert bound > found.bound - 5 * noise
    # importance weights reach log Z = 0
    assert abs(jnp.mean(jnp.exp(weights)) - 1) < 4 * jnp.exp(weights).std() / np.sqrt(20_000)


def test_paths_resampled_are_the_target(key):
    posterior = target.density(banana, jnp.zeros(2), 0.15)
    starts = 3 * jax.random.normal(jax.random.key(5), (6, 2))
    found = vi.multi_pathfinder(key, posterior, starts, draws=1000, proposals=500)
    assert found.draws.shape == (1000, 2)
    assert found.paths.bound.shape == (6,)
    # the draws are chosen from 3000 of that share
    worth = 1 / (1 / 1000 + 1 / (3000 * float(found.ess)))
    x, y = np.asarray(found.draws).T
    assert abs(x.mean()) < 4 / np.sqrt(worth)
    assert abs((x**2).mean() - 1) < 4 * np.sqrt(2 / worth)
    residual = (y - 0.15 * (x**2 - 1)) / 0.5
    assert abs(residual.mean()) < 4 / np.sqrt(worth)
    assert abs((residual**2).mean() - 1) < 4 * np.sqrt(2 / worth)


def test_what_did_not_go_is_said(key):
    nowhere = target.density(lambda _, x: jnp.sum(jnp.log(x)), jnp.zeros(2))
    found = vi.pathfinder(key, nowhere, -jnp.ones(2), steps=5)
    assert found.bound == -jnp.inf
    assert np.isnan(found.law.mean).all()
    assert found.info.steps == 0
    many = vi.multi_pathfinder(key, nowhere, -jnp.ones((2, 2)), draws=3, proposals=4, steps=5)
    assert many.ess == 0
    assert np.isnan(many.draws).all()


def test_compiled_once_and_in_batches(key):
    means = jnp.array([[1.0, 2.0], [-3.0, 0.0]])

    def run(key, mean, start):
        posterior = normal(mean, jnp.diag(jnp.array([1.0, 4.0])))
        return vi.pathfinder(key, posterior, start, steps=10)

    once = jax.jit(chex.assert_max_traces(run, n=1))
    alone = [once(key, m, -m) for m in means]
    together = jax.vmap(run, (None, 0, 0))(key, means, -means)
    for i, one in enumerate(alone):
        np.testing.assert_allclose(together.law.mean[i], one.law.mean, atol=1e-3)
        assert together.info.steps[i] == one.info.steps


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"start": jnp.zeros(3)}, ValueError, "start must have shape"),
        ({"steps": 0}, ValueError, "steps must be"),
        ({"memory": 0}, ValueError, "memory must be"),
        ({"draws": 0}, ValueError, "draws must be"),
        ({"curvature": 1.0}, ValueError, "curvature must lie"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be positive"),
        ({"target": 3}, TypeError, "no log_prob"),
    ],
)
def test_what_is_wrong_is_said(key, change, error, message):
    given = {"target": normal(jnp.zeros(2), jnp.eye(2)), "start": jnp.zeros(2)} | change
    with pytest.raises(error, match=message):
        vi.pathfinder(key, **given)
