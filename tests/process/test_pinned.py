"""Pinned processes against Gaussian conditioning, published coefficients and a linear bridge."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, guide, markov, process

CASES = {
    "linear_beta": process.linear_beta,
    "cosine": lambda: process.cosine(t_max=0.9),
    "variance_exploding": lambda: process.variance_exploding(0.05, 3.0),
    "edm": lambda: process.edm(0.002, 5.0),
}
cases = pytest.mark.parametrize("case", CASES)


@cases
def test_it_is_the_process_given_its_end(case, x64):
    """By Bayes: x_T = A x_t + B z, x_t = alpha x_0 + sigma z; and the ends are the ends."""
    p = process.gaussian(CASES[case]())
    pins, t = process.pinned(p), 0.37 * p.t_max
    across, left = p.transition(t, p.t_max)
    alpha, sigma = p.alpha(t), p.sigma(t)
    gain = sigma**2 * across / (across**2 * sigma**2 + left**2)
    wanted = alpha - gain * across * alpha, gain, sigma * jnp.sqrt(1 - gain * across)
    np.testing.assert_allclose(pins.coefficients(t), wanted, rtol=1e-10)
    np.testing.assert_allclose(pins.coefficients(p.t_max), (0.0, 1.0, 0.0), atol=2e-8)
    alpha, sigma = p.alpha(0.0), p.sigma(0.0)
    np.testing.assert_allclose(pins.coefficients(0.0), (alpha, 0.0, sigma), atol=1e-12)
    assert (pins.t_min, pins.t_max) == (p.t_min, p.t_max)


@cases
def test_the_way_back_keeps_the_law(case, x64):
    """q(x_s | x_0, x_t) after q(x_t | x_0, x_T) is q(x_s | x_0, x_T)."""
    p = process.gaussian(CASES[case]())
    pins, t, s = process.pinned(p), 0.8 * p.t_max, 0.45 * p.t_max
    (a, b, c), (d, e, f) = pins.coefficients(t), pins.until(t).coefficients(s)
    both = d + e * a, e * b, jnp.sqrt(f**2 + e**2 * c**2)
    np.testing.assert_allclose(both, pins.coefficients(s), rtol=1e-9)


def test_a_brownian_one_is_i2sb_s(x64):
    """Equation 11: the product of N(x_0, s^2) and N(x_1, r^2), r^2 the variance yet to come."""
    p = process.gaussian(process.edm(0.002, 5.0))
    s2, r2 = 2.0**2, 5.0**2 - 2.0**2
    wanted = r2 / (s2 + r2), s2 / (s2 + r2), np.sqrt(s2 * r2 / (s2 + r2))
    np.testing.assert_allclose(process.pinned(p).coefficients(2.0), wanted, rtol=1e-12)


def test_it_is_doob_s_bridge_of_the_linear_equation(x64):
    """dX = -beta X / 2 dt + sqrt(beta) dW, pinned: the marginal of two coordinates at once."""
    p = process.gaussian(process.linear_beta(3.0, 3.0), core.Diagonal(jnp.array([1.0, 0.5])))
    x0, x_T = jnp.array([0.4, -1.0]), jnp.array([1.5, 0.2])
    view = markov.linear_gaussian(jnp.eye(2), core.Diagonal(jnp.zeros(2)))
    root = jnp.sqrt(3.0) * jnp.diag(jnp.array([1.0, 0.5]))
    bridge = guide.doob(-1.5 * jnp.eye(2), jnp.zeros(2), root, view, x_T, p.t_max)
    wanted, got = bridge.kernel(0.0, 0.6).law(x0), process.pinned(p).law(x0, x_T, 0.6)
    np.testing.assert_allclose(got.mean, wanted.mean, rtol=1e-8)
    spread = wanted.covariance.factor @ wanted.covariance.factor.T
    np.testing.assert_allclose(got.covariance.dense(2), spread, rtol=1e-8, atol=1e-10)
    z = jnp.array([0.3, 0.7])
    drawn = process.pinned(p).perturb(x0, x_T, z, 0.6)
    np.testing.assert_allclose(drawn, got.mean + got.covariance.scale * z, rtol=1e-12)


def test_records_with_other_numbers_compile_once():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def at(pins, times):
        return jax.vmap(pins.coefficients)(times)

    for top in (3.0, 5.0):
        at(process.pinned(process.gaussian(process.edm(0.002, top))), jnp.linspace(0.1, 1.0, 3))


def test_an_end_without_signal_is_refused():
    with pytest.raises(ValueError, match="needs alpha"):
        process.pinned(process.gaussian(process.cosine()))
