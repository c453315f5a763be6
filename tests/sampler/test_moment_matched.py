"""The reverse transition by its first two moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, process, sampler, score


def law(dim=3, seed=0):
    rng = np.random.default_rng(seed)
    root = np.tril(rng.standard_normal((dim, dim)))
    matrix = root @ root.T + 0.2 * np.eye(dim)
    return core.gaussian(jnp.asarray(rng.standard_normal(dim)), core.dense(jnp.asarray(matrix)))


def noise_of(dim=3):
    rng = np.random.default_rng(5)
    root = np.tril(rng.standard_normal((dim, dim)))
    return core.dense(jnp.asarray(root @ root.T + 0.5 * np.eye(dim)))


@pytest.mark.parametrize("end", [0.0, 0.2])
@pytest.mark.parametrize("covariance", [None, noise_of])
def test_a_step_is_bayes_rule_on_gaussians(covariance, end, x64):
    """One step pushes the marginal at t onto the one at s, joint law and all, for any noise."""
    noise = None if covariance is None else covariance()
    p = process.gaussian(process.cosine(t_max=0.95), noise)
    data, t = law(), 0.8
    stepper, d = sampler.moment_matched(p), score.oracle(p, data)

    def kernel(x):
        return stepper.proposal(d, sampler.State(x), t, end)

    slope = jax.jacfwd(lambda x: kernel(x).mean)(jnp.zeros(3))
    spread = kernel(jnp.zeros(3)).covariance.dense(3)
    before, after = p.marginal(data, t), p.marginal(data, end)
    big, small = before.covariance.dense(3), after.covariance.dense(3)
    np.testing.assert_allclose(kernel(before.mean).mean, after.mean, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(slope @ big @ slope.T + spread, small, rtol=1e-9, atol=1e-10)
    a, _ = p.transition(end, t)
    # Cov(x_s, x_t) = small a: Bayes' rule, not only the marginals
    np.testing.assert_allclose(slope @ big, small * a, rtol=1e-9, atol=1e-10)


def test_two_moments_of_a_mixture(x64, key):
    """Mean and covariance of q(x_s | x_t) by importance sampling of x_0, within 4 errors."""
    p = process.gaussian(process.cosine(t_max=0.95))
    data = core.mixture(
        jnp.array([0.3, 0.7]), jnp.array([[-1.0, 0.5], [1.0, 0.0]]), jnp.array([0.3, 0.6])
    )
    t, s, x = 0.6, 0.4, jnp.array([0.2, 0.3])
    stepper = sampler.moment_matched(p)
    found = stepper.proposal(score.oracle(p, data), sampler.State(x), t, s)
    count = 100_000
    keys = jax.random.split(key, count)
    clean = jax.vmap(data.sample)(keys)
    fit = jax.vmap(lambda c: core.log_prob(p.noise_at(t), x - p.alpha(t) * c))(clean)
    w = np.exp(np.asarray(fit - jax.nn.logsumexp(fit)))
    ratio = float(p.alpha(t) / p.alpha(s) * p.sigma(s) / p.sigma(t))
    share = 1 - ratio**2
    shift = float(ratio * p.sigma(s) / p.sigma(t)) * np.asarray(x)
    means = float(p.alpha(s)) * share * np.asarray(clean) + shift
    mean = w @ means
    error = np.sqrt(np.square(w) @ np.square(means - mean))
    assert np.all(np.abs(mean - found.mean) < 4 * error)
    apart = means - mean
    outer = np.einsum("ni,nj->nij", apart, apart)
    covariance = np.einsum("n,nij->ij", w, outer)
    error = np.sqrt(np.einsum("n,nij->ij", np.square(w), np.square(outer - covariance)))
    total = covariance + float(p.sigma(s)) ** 2 * share * np.eye(2)
    assert np.all(np.abs(total - found.covariance.dense(2)) < 4 * error + 1e-12)


def test_it_runs_and_refuses(key):
    """A run to time 0 draws the data's law; a schedule without signal at its end is refused."""
    p = process.gaussian(process.cosine(t_max=0.99))
    data = law()
    d = score.oracle(p, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), data))
    x = p.prior().sample(key, (2000, 3))
    out = sampler.sample(key, sampler.moment_matched(p), d, sampler.uniform(p, 3), x)
    assert bool(jnp.all(out.info.finite))
    z = (np.mean(out.x, axis=0) - data.mean) / (np.std(out.x, axis=0) / np.sqrt(2000))
    assert np.all(np.abs(z) < 4)
    with pytest.raises(ValueError, match=r"t_max=0.99"):
        sampler.moment_matched(process.gaussian(process.cosine()))
