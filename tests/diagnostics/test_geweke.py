"""Geweke's test: right transitions on many keys, and wrong ones that it catches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, diagnostics, mcmc, target

PRIOR = core.gaussian(jnp.zeros(2), core.Diagonal(1.0))


def simulate(key, theta):
    """Three numbers about the first parameter, with the exponential of the second for scale."""
    return theta[0] + jnp.exp(theta[1] / 2) * jax.random.normal(key, (3,))


def log_likelihood(data, theta):
    return jnp.sum(-jnp.square(data - theta[0]) / (2 * jnp.exp(theta[1])) - theta[1] / 2)


def functions(theta, data):
    # The data enter through a bounded function: their own fourth moment is huge.
    mean = jnp.tanh(data.mean())
    return jnp.array([*theta, *jnp.square(theta), theta[0] * theta[1], theta[0] * mean, mean**2])


def transition(kernel, factor=1.0):
    def step(key, theta, data):
        posterior = target.density(
            lambda data, theta: factor * log_likelihood(data, theta),
            jnp.zeros(2), data, prior=PRIOR,
        )  # fmt: skip
        return kernel.step(key, posterior, kernel.init(posterior, theta))[0].z

    return step


def run(step, seeds, draws=1000):
    @jax.jit
    @jax.vmap
    def test(key):
        return diagnostics.geweke(
            key, PRIOR.sample, simulate, step, functions, chains=4, draws=draws
        )

    return test(jax.vmap(jax.random.key)(jnp.arange(seeds)))


@pytest.mark.parametrize("kernel", [mcmc.hmc(3, 0.4), mcmc.random_walk(1.0)])
def test_a_right_transition_passes_on_twenty_keys(kernel):
    found = run(transition(kernel), 20)
    z = np.asarray(found.z)
    # 140 scores that are nearly normal: the greatest below 4, their mean square 1 within what
    # correlated functions and estimated errors leave.
    assert np.abs(z).max() < 4
    assert 0.6 < np.mean(z**2) < 1.6
    np.testing.assert_allclose(np.asarray(found.marginal).mean(0)[:5], [0, 0, 1, 1, 0], atol=0.1)


def test_wrong_transitions_are_caught():
    """A likelihood that counts half too much, and a proposal that is always accepted."""
    found = run(transition(mcmc.hmc(3, 0.4), 1.5), 2, 4000)
    assert (np.abs(found.z).max(1) > 5).all()

    def unadjusted(key, theta, data):
        drift = jax.grad(lambda t: log_likelihood(data, t) + PRIOR.log_prob(t))(theta)
        drift = drift / (1 + jnp.linalg.norm(drift))
        return theta + 0.3 * drift + jnp.sqrt(0.6) * jax.random.normal(key, (2,))

    assert (np.abs(run(unadjusted, 2).z).max(1) > 5).all()


def test_an_exact_draw_of_the_posterior_by_closed_form(key):
    """Gibbs by conjugacy, theta ~ N(0, 1) and y ~ N(theta, 1): E theta y = 1, E y^2 = 2."""

    def step(key, theta, data):
        return data / 2 + jnp.sqrt(0.5) * jax.random.normal(key)

    def data_and_more(theta, data):
        return jnp.stack([theta, theta * data, data**2])

    def data(key, theta):
        return theta + jax.random.normal(key)

    @jax.jit
    def test(key):
        return diagnostics.geweke(
            key, jax.random.normal, data, step, data_and_more, chains=4, draws=1000
        )

    found = test(key)
    assert np.abs(found.z).max() < 4
    # Each mean of M terms of variance at most 8, worth a third of them along a chain.
    np.testing.assert_allclose(found.marginal, [0, 1, 2], atol=4 * np.sqrt(8 / 4000))
    np.testing.assert_allclose(found.successive, [0, 1, 2], atol=4 * np.sqrt(24 / 4000))


def test_what_is_wrong_is_said(key):
    with pytest.raises(ValueError, match="four draws"):
        diagnostics.geweke(key, PRIOR.sample, simulate, lambda k, t, d: t, functions, draws=3)
    with pytest.raises(ValueError, match="one vector"):
        diagnostics.geweke(
            key, PRIOR.sample, simulate, lambda k, t, d: t, lambda theta, data: data.sum()
        )
