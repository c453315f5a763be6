"""'Common Diffusion Noise Schedules and Sample Steps are Flawed', on Stable Diffusion's betas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, process, sampler, score

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
STEPS = 1000


def schedules():
    """Stable Diffusion's schedule and the same with zero terminal signal-to-noise."""
    flawed = process.betas(BETAS)
    return flawed, process.zero_terminal_snr(flawed)


def test_the_last_signal_is_exactly_zero_and_the_first_unchanged(x64):
    """Table 1: sqrt(abar_T) = 0.068265 and SNR_T = 0.004682 before, 0 after; abar_1 stays."""
    flawed, mended = schedules()
    np.testing.assert_allclose(flawed.alpha(1.0), np.sqrt(np.prod(1 - BETAS)), rtol=1e-12)
    np.testing.assert_allclose(flawed.alpha(1.0), 0.068265, atol=5e-7)
    snr = (flawed.alpha(1.0) / flawed.sigma(1.0)) ** 2
    np.testing.assert_allclose(snr, 0.004682, atol=5e-7)
    assert float(mended.alpha(1.0)) == 0.0
    assert float(mended.sigma(1.0)) == 1.0
    np.testing.assert_allclose(mended.alpha(1e-3), flawed.alpha(1e-3), rtol=1e-12)
    np.testing.assert_allclose(flawed.alpha(1e-3), np.sqrt(1 - BETAS[0]), rtol=1e-12)
    # algorithm 1, at every step
    k = jnp.arange(1, 1001) / 1000
    root = np.sqrt(np.cumprod(1 - BETAS))
    wanted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(jax.vmap(mended.alpha)(k), wanted, atol=1e-12)


@pytest.mark.parametrize(("which", "mean"), [(0, 0.9317), (1, 1.0)])
def test_the_mean_brightness_of_samples(which, mean, x64, key):
    """Data N(1, 1): from N(0, 1) the flow ends with mean 1 - alpha_T, which only the mend makes 1.

    The marginals are N(alpha, 1), so the flow keeps x - alpha and carries 0 to 1 - alpha_T; it is
    affine, so that is the samples' mean. A DDIM step of angle h multiplies x - alpha by cos h, so
    the method is off by alpha_T (1 - prod cos h) exactly.
    """
    p = process.gaussian(schedules()[which])
    law = core.gaussian(jnp.ones(1), core.Diagonal(jnp.ones(1)))
    plan = sampler.uniform(p, STEPS)
    assert float(plan.times[0]) == float(p.t_max)  # trailing: the first step leaves from t_max
    out = sampler.sample(key, sampler.ddim(p), score.oracle(p, law), plan, jnp.zeros((1, 1)))
    angles = np.arctan2(*(jax.vmap(f)(jnp.asarray(plan.times)) for f in (p.sigma, p.alpha)))
    loss = 1 - np.prod(np.cos(np.diff(angles)))
    assert loss < 5e-3
    wanted = 1 - float(p.alpha(1.0)) * (1 - loss)
    np.testing.assert_allclose(out.x, wanted, rtol=1e-10)
    np.testing.assert_allclose(out.x, mean, atol=5e-4)


def _network(params, x, t, cond):
    return params * x


def test_only_predictions_that_say_something_are_taken(x64):
    """The noise says nothing at zero signal and is refused; v there is -x_0 and decodes exactly."""
    p = process.gaussian(schedules()[1])
    for predicts in (score.eps, score.score):
        with pytest.raises(ValueError, match=r"take process\.v"):
            score.denoiser(p, _network, jnp.asarray(0.3), predicts=predicts)
        with pytest.raises(ValueError, match=r"take process\.v"):
            score.denoising(p, _network, target=predicts)
    x = jnp.array([0.4, -1.0])
    clean = score.denoiser(p, _network, jnp.asarray(0.3), predicts=score.v)(x, 1.0)
    np.testing.assert_allclose(clean, -0.3 * x, rtol=1e-12)
