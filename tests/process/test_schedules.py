"""Schedules against their published formulas, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import process


def test_derived_rates_are_the_published_ones(x64):
    """Drift and dispersion: -beta/2 and beta (linear), 0 and 2 t (EDM), -1/(1-t) (flow)."""
    t = 0.37
    vp = process.gaussian(process.linear_beta())
    beta = 0.1 + t * 19.9
    np.testing.assert_allclose(vp.drift(t), -beta / 2, rtol=1e-12)
    np.testing.assert_allclose(vp.dispersion_squared(t), beta, rtol=1e-12)
    edm = process.gaussian(process.edm())
    np.testing.assert_allclose(edm.drift(t), 0, atol=1e-15)
    np.testing.assert_allclose(edm.dispersion_squared(t), 2 * t, rtol=1e-12)
    flow = process.gaussian(process.linear_interpolation())
    np.testing.assert_allclose(flow.drift(t), -1 / (1 - t), rtol=1e-12)
    np.testing.assert_allclose(flow.dispersion_squared(t), 2 * t / (1 - t), rtol=1e-12)
    ve = process.gaussian(process.variance_exploding())
    sigma = 0.01 * 5000**t
    np.testing.assert_allclose(ve.dispersion_squared(t), sigma**2 * 2 * np.log(5000), rtol=1e-12)


def test_betas_are_the_table(x64):
    """At t = k / T the signal scale is the cumulative product's root."""
    table = np.linspace(1e-4, 0.02, 1000)
    schedule = process.betas(table)
    for k in (1, 500, 1000):
        np.testing.assert_allclose(
            schedule.alpha(k / 1000) ** 2, np.prod(1 - table[:k]), rtol=1e-10
        )
    assert schedule.t_min == 1e-3


def test_the_data_scale_is_edms():
    """EDM, table 1: sigma_data = 0.5."""
    assert process.preconditioned() == process.preconditioned(0.5)


def test_log_snr_is_kingmas(x64):
    """log(alpha^2 / sigma^2), with its derivative consistent with the SNR's rate."""
    p = process.gaussian(process.cosine())
    t = 0.4
    np.testing.assert_allclose(p.log_snr(t), -2 * np.log(np.tan(np.pi * t / 2)), rtol=1e-12)
    rate = jax.grad(lambda t: jnp.exp(p.log_snr(t)))(t)
    np.testing.assert_allclose(p.snr_rate(t), rate, rtol=1e-12)


def test_ends_are_exact_in_float32():
    """The cosine and straight schedules have exactly no signal at 1 and no noise at 0."""
    for schedule in (process.cosine(), process.linear_interpolation()):
        assert float(schedule.alpha(jnp.float32(1))) == 0
        assert float(schedule.sigma(jnp.float32(0))) == 0
        assert float(schedule.sigma(jnp.float32(1))) == 1


def _rising(t):
    return t


def _falling(t):
    return 1 - t


def _wavy(t):
    return 1.5 - t + 0.3 * jnp.sin(20 * t)


def _negative(t):
    return 0.5 - t


def _infinite(t):
    return 1 / (t - t)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda: process.custom(_rising, _falling), r"must fall.*alpha\(t_max - t\)"),
        (lambda: process.custom(_wavy, _rising), "rises between t="),
        (lambda: process.variance_preserving(_negative), r"alpha\(t\) must be finite and not neg"),
        (lambda: process.custom(_falling, _infinite), r"sigma\(t\) must be finite"),
        (lambda: process.cosine(t_min=0.0), "0 < t_min < t_max"),
        (lambda: process.cosine(t_min=0.5, t_max=0.4), "0 < t_min < t_max"),
    ],
)
def test_bad_schedules_are_refused(schedule, message):
    """Schedules that are no schedules say where and what to do, when the process is made."""
    with pytest.raises(ValueError, match=message):
        process.gaussian(schedule())


def test_other_bad_input():
    """Betas, data scales and rescalings outside their range; something that is no schedule."""
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        process.betas(np.array([0.1, 1.2]))
    with pytest.raises(ValueError, match="non-empty"):
        process.betas(np.array([]))
    with pytest.raises(ValueError, match="data_scale must be positive"):
        process.preconditioned(0.0)
    with pytest.raises(ValueError, match="variance-preserving"):
        process.zero_terminal_snr(process.edm())
    with pytest.raises((TypeError, Exception), match="schedule"):
        process.gaussian("cosine")
    p = process.gaussian(process.cosine())
    with pytest.raises(ValueError, match=r"\(1, d\)"):
        p.prior().sample(jax.random.key(0), (0, 3))


def test_traced_numbers_are_not_checked():
    """A schedule may be swept by vmap and built under jit, where no number is known."""

    @jax.jit
    @jax.vmap
    def level(t_max):
        return process.gaussian(process.cosine(t_max=t_max)).log_snr(0.5)

    np.testing.assert_allclose(level(jnp.array([0.9, 1.0])), 0, atol=1e-6)
