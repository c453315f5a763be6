"""The variational bound, part by part, against Gaussian data's closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from score_models import COVARIANCE, unhooked, z_score

from jaxinf import core, process, sampler, score

SCALE = 0.7


def white_data(schedule):
    """N(0, SCALE^2) in the plane, under white noise."""
    p = process.gaussian(schedule)
    return p, core.gaussian(jnp.zeros(2), core.Diagonal(jnp.full(2, SCALE)))


def snr(p, t):
    """The signal-to-noise ratio as a float."""
    return float(jnp.exp(p.log_snr(t)))


def mmse(ratio):
    """Mean square of x_0 - E[x_0 | x_t], both dimensions together."""
    return 2 * SCALE**2 / (1 + SCALE**2 * ratio)


def test_continuous_time(x64, key):
    """Each part has its closed form on average over the data, and the whole exceeds the entropy.

    Prior: E|x_0|^2 SNR(T) / 2. Diffusion: int mmse dSNR / 2 = log((1 + s^2 SNR(0)) / (1 + s^2
    SNR(T))), two dimensions together. Reconstruction: the entropy of N(0, sigma^2 / alpha^2).
    """
    p, law = white_data(process.edm())
    x = SCALE * np.random.default_rng(0).normal(size=(4096, 2))
    bound = score.variational_bound(key, score.oracle(p, law), jnp.asarray(x), draws=8)
    first, last = snr(p, p.t_min), snr(p, p.t_max)
    prior = last * SCALE**2
    diffusion = np.log((1 + SCALE**2 * first) / (1 + SCALE**2 * last))
    reconstruction = np.log(2 * np.pi * np.e / first)
    entropy = np.log(2 * np.pi * np.e * SCALE**2)
    assert abs(z_score(bound.prior, prior)) < 4
    assert abs(z_score(bound.diffusion, diffusion)) < 4
    np.testing.assert_allclose(bound.reconstruction, reconstruction, rtol=1e-12)
    wanted = prior + diffusion + reconstruction
    assert wanted > entropy
    assert abs(z_score(bound.total, wanted)) < 4


@core.record
class Expected:
    """A denoiser whose squared error at x_0 = 0 is mmse(t), exactly: no noise in the bound."""

    process: core.Leaf

    def __call__(self, x, t, cond=None):
        """The same number in both dimensions."""
        ratio = jnp.exp(self.process.log_snr(t))
        return jnp.full_like(x, SCALE) / jnp.sqrt(1 + SCALE**2 * ratio)


def test_discrete_time_tends_to_continuous_time(x64, key):
    """In T steps it is sum (SNR(s) - SNR(t)) mmse(t) / 2 exactly; its excess falls like 1 / T."""
    p, _ = white_data(process.linear_beta(t_min=0.05))
    first, last = snr(p, p.t_min), snr(p, p.t_max)
    limit = np.log((1 + SCALE**2 * first) / (1 + SCALE**2 * last))
    excess = []
    for steps in (400, 800):
        plan = sampler.uniform(p, steps, end=p.t_min)
        bound = score.variational_bound(key, Expected(p), jnp.zeros((1, 2)), plan=plan)
        ratios = np.array(jnp.exp(jax.vmap(p.log_snr)(jnp.asarray(plan.times))))
        wanted = np.sum(np.diff(ratios) * mmse(ratios[:-1])) / 2
        np.testing.assert_allclose(bound.diffusion, wanted, rtol=1e-11)
        excess.append(float(bound.diffusion[0]) - limit)
    assert min(excess) > 0
    # the error of a sum is c / T + O(1 / T^2): halving to within the second order, 1 / T c' / c
    np.testing.assert_allclose(np.divide(excess[:-1], excess[1:]), 2, atol=0.1)


def test_continuous_time_without_noise(x64, key):
    """Stratified times integrate the smooth integrand: the error at 512 of them is below 1 in 1e3.

    The rule is a shifted Riemann sum: off by at most the integrand's end-to-end change over T.
    """
    p, _ = white_data(process.linear_beta(t_min=0.05))
    first, last = snr(p, p.t_min), snr(p, p.t_max)
    limit = np.log((1 + SCALE**2 * first) / (1 + SCALE**2 * last))
    bound = score.variational_bound(key, Expected(p), jnp.zeros((8, 2)), draws=512)
    np.testing.assert_allclose(bound.diffusion, limit, rtol=2e-3)
    assert abs(z_score(bound.diffusion, limit)) < 4
    # example i's draws depend on the key and on i alone
    assert len(np.unique(bound.diffusion)) == 8
    others = jnp.where(jnp.arange(8)[:, None] < 4, 0.0, jnp.ones((8, 2)))
    again = score.variational_bound(key, Expected(p), others, draws=512)
    np.testing.assert_array_equal(again.diffusion[:4], bound.diffusion[:4])


def test_the_metric_is_the_noises(x64, key):
    """With noise of covariance C errors are measured by C^-1; data N(0, K) have a closed form.

    In the basis in which C^-1 K has eigenvalues k, the parts are sums over them.
    """
    c, k = COVARIANCE, np.diag([0.5, 1.0, 2.0])
    p = process.gaussian(process.linear_beta(), core.dense(jnp.asarray(c)))
    law = core.gaussian(jnp.zeros(3), core.dense(jnp.asarray(k)))
    x = np.random.default_rng(1).normal(size=(1024, 3)) @ np.sqrt(k)
    bound = score.variational_bound(key, score.oracle(p, law), jnp.asarray(x), draws=8)
    eigenvalues = np.linalg.eigvals(np.linalg.solve(c, k)).real
    first, last = snr(p, p.t_min), snr(p, p.t_max)
    assert abs(z_score(bound.prior, last * eigenvalues.sum() / 2)) < 4
    diffusion = np.log((1 + eigenvalues * first) / (1 + eigenvalues * last)).sum() / 2
    assert abs(z_score(bound.diffusion, diffusion)) < 4
    reconstruction = (3 * np.log(2 * np.pi * np.e / first) + np.linalg.slogdet(c)[1]) / 2
    np.testing.assert_allclose(bound.reconstruction, reconstruction, rtol=1e-10)


def test_bad_input_names_its_mend(key):
    """What is wrong is said before anything is compiled."""
    p, law = white_data(process.linear_beta())
    x, oracle = jnp.zeros((2, 2)), score.oracle(p, law)

    def call(key=key, x=x, cond=None, **options):
        with unhooked():
            score.variational_bound(key, oracle, x, cond, **options)

    with pytest.raises(TypeError, match=r"data\.dequantise"):
        call(x=jnp.zeros((2, 2), jnp.uint8))
    with pytest.raises(ValueError, match=r"x\[None\] makes"):
        call(x=x[:0])
    with pytest.raises(ValueError, match="leading axis 2"):
        call(cond=jnp.zeros(3))
    with pytest.raises(ValueError, match="draws must be at least 1"):
        call(draws=0)
    with pytest.raises(ValueError, match=r"end it at process\.t_min"):
        call(plan=sampler.uniform(p, 3))
    with pytest.raises(TypeError, match=r"jax\.random\.key\(seed\)"):
        call(key=jax.random.PRNGKey(0))
