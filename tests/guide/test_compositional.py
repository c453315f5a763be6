"""Compositional scores on a Gaussian model, where all is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, guide, process, sampler

PROCESS = process.gaussian(process.linear_beta())
PRIOR = core.gaussian(jnp.zeros(1), core.white())


class OfOne:
    """p(theta | x) of theta ~ N(0, 1), x ~ N(theta, 1): N(x / 2, 1 / 2)."""

    process = PROCESS

    def __call__(self, x, t, cond=None):
        law = core.gaussian(cond / 2, core.Diagonal(jnp.sqrt(0.5)))
        return PROCESS.posterior_mean(law, x, t)


def observations(n, total=5.0):
    x = np.random.default_rng(0).standard_normal((n, 1))
    return jnp.asarray(x - x.mean() + total / n, jnp.result_type(float))


jax.tree_util.register_static(OfOne)


@pytest.mark.parametrize("n", [1, 10])
def test_the_score_at_time_0_is_the_posteriors(n, x64):
    d = guide.compositional(OfOne(), observations(n), PRIOR)
    t = 1e-9
    x = jnp.array([0.8])
    found = (PROCESS.alpha(t) * d(x, t) - x) / PROCESS.sigma(t) ** 2
    np.testing.assert_allclose(found, -(n + 1) * (x - 5.0 / (n + 1)), rtol=1e-5)


def test_the_score_is_that_of_the_bridging_density(x64):
    """(1 - n)(1 - t) grad log p + the sum of the posteriors' scores."""
    n, t = 4, 0.3
    seen = observations(n)
    d = guide.compositional(OfOne(), seen, PRIOR)

    def log_bridge(x):
        laws = core.gaussian(jnp.zeros(1), core.Diagonal(jnp.sqrt(0.5)))
        noised = PROCESS.marginal(laws, t)
        each = jax.vmap(lambda m: noised.log_prob(x - PROCESS.alpha(t) * m / 2))(seen)
        return (1 - n) * (1 - t) * PRIOR.log_prob(x) + jnp.sum(each)

    x = jnp.array([-0.4])
    found = (PROCESS.alpha(t) * d(x, t) - x) / PROCESS.sigma(t) ** 2
    np.testing.assert_allclose(found, jax.grad(log_bridge)(x), rtol=1e-10)


def test_a_move_is_langevins(x64, key):
    """x + h score + sqrt(2 h) z at the level t, twice."""
    d, t, s, h = guide.compositional(OfOne(), observations(3), PRIOR), 0.6, 0.5, 0.02
    noise = core.Independent(key, 0, 0, (1,), jnp.float64)
    stepper = guide.annealed_langevin(PROCESS, h, 2)
    found, _ = stepper.step(d, noise, sampler.State(jnp.array([0.4])), t, s)
    x = jnp.array([0.4])
    for k in range(2):
        fresh = dataclasses.replace(noise, key=jax.random.fold_in(key, k)).increment(t, s)
        slope = (PROCESS.alpha(t) * d(x, t) - x) / PROCESS.sigma(t) ** 2
        x = x + h * slope + jnp.sqrt(2 * h) * fresh
    np.testing.assert_allclose(found.x, x, rtol=1e-11)


def test_langevin_finds_the_posterior_and_reversal_does_not():
    """n = 10, sum 5: N(0.4545, 0.0909), within 4 standard errors and Langevin's known widening."""
    n, count, size = 10, 4000, 0.01
    key = jax.random.key(1)
    d = guide.compositional(OfOne(), observations(n), PRIOR)
    plan = sampler.uniform(PROCESS, 100, end=PROCESS.t_min)
    x = PROCESS.prior().sample(key, (count, 1)) / np.sqrt(n)
    stepper = guide.annealed_langevin(PROCESS, size, 10)
    found = np.asarray(sampler.sample(key, stepper, d, plan, x).x)
    mean, variance = 5 / 11, 1 / 11
    widened = variance / (1 - size / (2 * variance))
    assert abs(found.mean() - mean) < 4 * np.sqrt(widened / count)
    assert abs(found.var() - widened) < 4 * widened * np.sqrt(2 / count)
    reversed_ = np.asarray(sampler.sample(key, sampler.ancestral(PROCESS), d, plan, x).x)
    assert reversed_.var() < 0.7 * variance, reversed_.var()
    # and without the prior's correction the posterior is counted ten times
    naive = guide.compositional(OfOne(), observations(n), core.gaussian(
        jnp.zeros(1), core.Diagonal(1e4)))  # fmt: skip
    wrong = np.asarray(sampler.sample(key, stepper, naive, plan, x).x)
    assert abs(wrong.var() - 1 / 20 / (1 - size * 10)) < 4 / 20 * np.sqrt(2 / count)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="log_prob"):
        guide.compositional(OfOne(), observations(2), None)
    with pytest.raises(ValueError, match="size must be positive"):
        guide.annealed_langevin(PROCESS, 0.0)
    with pytest.raises(ValueError, match="repeats"):
        guide.annealed_langevin(PROCESS, 0.1, 0)
