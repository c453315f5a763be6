"""Dual-rate variational Bayes against a linear Gaussian decoder and probabilistic PCA."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from jaxinf import vi


def linear_gaussian(params, z, x):
    """Standard normal z, and x about W z + b with errors of one scale."""
    prior = jnp.sum(jax.scipy.stats.norm.logpdf(z))
    errors = x - params["b"] - params["w"] @ z
    return prior + jnp.sum(jax.scipy.stats.norm.logpdf(errors, 0.0, jnp.exp(params["log_sigma"])))


def decoder(dim, latent, seed=0, sigma=0.5):
    w = np.random.default_rng(seed).normal(size=(dim, latent))
    return {"w": jnp.asarray(w), "b": jnp.zeros(dim), "log_sigma": jnp.log(sigma)}


def marginal(params):
    w, sigma = np.asarray(params["w"], float), np.exp(float(params["log_sigma"]))
    covariance = w @ w.T + sigma**2 * np.eye(len(w))
    return stats.multivariate_normal(np.asarray(params["b"], float), covariance)


FAST = optax.adam(optax.exponential_decay(0.1, 300, 0.1))
STICKING = vi.elbo(4, sticking=True)


def test_local_posteriors_are_the_closed_form(x64, key):
    params = decoder(4, 2)
    data = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)))
    found = vi.fit_local(
        key, linear_gaussian, params, data, vi.full_rank(2), fast=1200, fast_optimizer=FAST,
        objective=STICKING,
    )  # fmt: skip
    w = np.asarray(params["w"])
    covariance = np.linalg.inv(np.eye(2) + w.T @ w / 0.25)
    mean = np.asarray(data) @ w @ covariance / 0.25
    off = np.abs(found.family.mean - mean).max()
    gap = marginal(params).logpdf(np.asarray(data)) - np.asarray(found.bound)
    assert off < 1e-3
    spread = jax.vmap(lambda law: law.law.covariance.dense(2))(found.family)
    np.testing.assert_allclose(spread, np.broadcast_to(covariance, (5, 2, 2)), atol=1e-3)
    # log w is constant at the posterior: the bound of any draws is the evidence
    assert np.abs(gap).max() < 1e-4
    assert found.skipped.sum() == 0
    # independent numbers do not reach it, and noise is left: the mean is unbiased, 4 errors
    runs = jax.vmap(
        lambda key: vi.fit_local(
            key, linear_gaussian, params, data[:1], vi.mean_field(2), fast=1200,
            fast_optimizer=FAST, objective=STICKING,
        )
    )(jax.random.split(key, 40))  # fmt: skip
    means = np.asarray(runs.family.mean[:, 0])
    assert np.abs((means.mean(0) - mean[0]) / means.std(0) * np.sqrt(40)).max() < 4
    logs = np.asarray(runs.family.log_scale[:, 0])
    wanted = -np.log(np.diag(np.linalg.inv(covariance))) / 2
    # of second order in what one run's is off
    error = 4 * logs.std(0) / np.sqrt(40) + 2 * logs.var(0)
    assert np.all(np.abs(logs.mean(0) - wanted) < error)


def test_the_slow_step_is_the_gradient_of_the_evidence(x64, key):
    """At exact posteriors (Fisher's identity), and nothing flows through the fast steps."""
    params = decoder(3, 1)
    data = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)))
    descent = optax.sgd(1.0)
    run = jax.vmap(
        lambda key: vi.dual_rate(
            key, linear_gaussian, params, data, vi.full_rank(1), steps=1, fast=700,
            fast_optimizer=FAST, objective=vi.elbo(64), optimizer=descent,
        )
    )(jax.random.split(key, 30))  # fmt: skip

    def evidence(params):
        covariance = params["w"] @ params["w"].T + jnp.exp(2 * params["log_sigma"]) * jnp.eye(3)
        errors = data - params["b"][None]
        deviance = jnp.einsum("ni,ni->n", errors, jnp.linalg.solve(covariance, errors.T).T)
        return -jnp.mean(deviance) / 2 - jnp.linalg.slogdet(covariance)[1] / 2

    wanted = jax.grad(evidence)(params)
    for name in params:
        moved = np.asarray(run.params[name] - params[name][None])
        error = moved.std(0) / np.sqrt(30)
        z = (moved.mean(0) - np.asarray(wanted[name])) / error
        assert np.abs(z).max() < 4, name


def test_the_slow_loop_reaches_probabilistic_pca(key):
    """Maximum likelihood of digits with two components, within 1 %."""
    pixels = (load_digits().data / 16)[:600]
    pixels = PCA(8).fit_transform(pixels)
    pixels /= pixels.std()
    best = PCA(2).fit(pixels).score(pixels)
    start = decoder(8, 2, 3, 1.0)
    start = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), start)
    falling = optax.adam(optax.exponential_decay(0.1, 100, 0.3))
    run = vi.dual_rate(
        key, linear_gaussian, start, jnp.asarray(pixels, jnp.float32), vi.full_rank(2), steps=300,
        fast=30, batch=100, fast_optimizer=optax.adam(0.2), objective=STICKING, optimizer=falling,
    )  # fmt: skip
    found = marginal(run.params).logpdf(pixels).mean()
    first = marginal(start).logpdf(pixels).mean()
    assert first < best - 0.5
    # no decoder is better than the maximum, up to rounding and scikit-learn's n - 1
    assert found < best + 1e-4
    assert abs(found - best) < 0.01 * abs(best)
    spread = marginal(run.params).logpdf(pixels).std()
    assert run.info.bound[-50:].mean() < best + 4 * spread / np.sqrt(50 * 100)
    assert run.info.skipped.sum() == 0
    assert run.info.invalid.sum() == 0


def test_compiled_once_and_in_batches(key):
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), decoder(3, 1))
    data = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 3)), jnp.float32)

    def run(key, params, data):
        return vi.dual_rate(
            key, linear_gaussian, params, data, vi.mean_field(1), steps=3, fast=2, batch=2
        ).params

    once = jax.jit(chex.assert_max_traces(run, n=1))
    alone = [once(key, params, x) for x in data]
    together = jax.vmap(run, (None, None, 0))(key, params, data)
    for i, one in enumerate(alone):
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], together), one, atol=1e-5)


def broken(params, z, x):
    """Infinite for the second example."""
    return jnp.where(x[0] > 0, -jnp.inf, linear_gaussian(params, z, x))


def test_what_is_not_finite_is_counted(key):
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), decoder(3, 1))
    data = jnp.array([[-1.0, 0, 0], [1.0, 0, 0]])
    found = vi.fit_local(key, broken, params, data, vi.mean_field(1), fast=5)
    np.testing.assert_array_equal(found.skipped, [0, 5])
    run = vi.dual_rate(key, broken, params, data, vi.mean_field(1), steps=2, fast=5)
    np.testing.assert_array_equal(run.info.skipped, [1, 1])
    np.testing.assert_array_equal(run.info.invalid, [6, 6])
    chex.assert_trees_all_equal(run.params, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fast": 0}, "fast must be"),
        ({"batch": 9}, "batch must lie between 1 and the 4"),
        ({"steps": 0}, "steps must be"),
        ({"data": (jnp.zeros((4, 3)), jnp.zeros(3))}, "leading axis"),
        ({"log_joint": lambda params, z, x: z}, "one number"),
    ],
)
def test_what_is_wrong_is_said(key, change, message):
    given = {
        "log_joint": linear_gaussian,
        "params": decoder(3, 1),
        "data": jnp.zeros((4, 3)),
        "family": vi.mean_field(1),
    } | change
    with pytest.raises(ValueError, match=message):
        vi.dual_rate(key, **given)
