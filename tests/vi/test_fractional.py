"""Fractional noise against its closed form, quadrature and Kalman's filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from jaxinf import core, markov, vi

FIGURES = {0.3: 0.084, 0.5: 1e-4, 0.7: 0.010, 0.9: 0.0065}
"""Relative error of paths of 5 terms with ratio 5 on [0, 1]; at 1/2 a bound."""


def driver(hurst, terms=5):
    return vi.fractional_brownian(hurst, vi.geometric_rates(terms, 5.0))


def quadrature(process):
    """The relative error of the kernels, by which W is convolved, without the closed form."""
    hurst = float(process.hurst)
    rates, weights = (np.asarray(a, np.float64) for a in (process.rates, process.weights))

    # u = v^p takes the kernel's root away
    power = 1 / hurst

    def off(v, kept):
        u = v**power
        exact = u ** (hurst - 0.5) / special.gamma(hurst + 0.5)
        near = weights @ np.exp(-rates * u)
        return (1 - u) * (exact - kept * near) ** 2 * power * v ** (power - 1)

    found = [integrate.quad(off, 0, 1, args=(kept,), limit=400, epsabs=1e-13)[0] for kept in (1, 0)]
    return np.sqrt(found[0] / found[1])


@pytest.mark.parametrize("hurst", FIGURES)
def test_error_of_paths(x64, hurst):
    error = driver(hurst).path_error()
    if hurst == 0.5:
        assert error < FIGURES[hurst]
    else:
        # the figures have two digits
        assert abs(error / FIGURES[hurst] - 1) < 0.03
        np.testing.assert_allclose(error, quadrature(driver(hurst)), rtol=1e-5)
    assert driver(hurst, 7).path_error() < error


def test_weights_solve_the_equations_and_are_the_best(x64):
    """Between the nodes too; a gradient in the index is that of the closed form."""
    for hurst in (0.11, 0.37, 0.83):
        process = driver(hurst)
        sums = process.rates[:, None] + process.rates[None]
        matrix = (1 + jnp.expm1(-sums) / sums) / sums

        def right(hurst, rates=process.rates):
            order = hurst + 0.5
            seen = jax.scipy.special.gammainc(order, rates) * rates**-order
            later = jax.scipy.special.gammainc(order + 1, rates) * rates ** -(order + 1)
            return seen - order * later

        np.testing.assert_allclose(matrix @ process.weights, right(hurst), atol=1e-12)
        slope = jax.jacfwd(lambda h: vi.fractional_brownian(h).weights)(hurst)
        change = (right(hurst + 1e-5) - right(hurst - 1e-5)) / 2e-5
        np.testing.assert_allclose(matrix @ slope, change, atol=1e-9)


def test_single_precision_is_enough():
    for terms, hurst in ((5, 0.3), (5, 0.7), (7, 0.3), (7, 0.7)):
        single = driver(hurst, terms).path_error()
        with jax.enable_x64(True):
            double = driver(hurst, terms).path_error()
        assert abs(single - double) < 0.01 * double


def test_driver_has_the_variance_of_type_two(x64, key):
    """With 80,000 draws the error of a variance is 0.5 %, four of them 2 %."""
    process, times, count = driver(0.7), jnp.array([0.1, 0.4, 1.0]), 80_000
    paths = jax.vmap(lambda key: process.sample(key, times))(jax.random.split(key, count))
    exact = times**1.4 / (1.4 * special.gamma(1.2) ** 2)
    covariance = process.covariance(times)
    np.testing.assert_allclose(jnp.var(paths[:, 1:], axis=0), exact[1:], rtol=0.02)
    found = np.cov(np.asarray(paths).T)
    scale = np.sqrt(np.diag(covariance))
    assert np.abs((found - covariance) / np.outer(scale, scale)).max() < 4 * np.sqrt(2 / count)
    np.testing.assert_allclose(jnp.diag(covariance)[1:], exact[1:], rtol=0.01)
    # transitions compose
    whole = process.transition(0.9)
    parts = process.transition(0.2).then(process.transition(0.7))
    np.testing.assert_allclose(parts.matrix, whole.matrix, atol=1e-12)
    np.testing.assert_allclose(parts.root @ parts.root.T, whole.root @ whole.root.T, atol=1e-12)


RATE, SCALE, SPREAD, START, STEPS = -0.5, 0.8, 0.3, 0.5, 256
SEEN = np.array([0.9, 0.4, 1.1, 0.2])
GRID = np.linspace(0, 1, STEPS + 1)


def drift(params, t, x):
    return RATE * x


def dispersion(params, t, x):
    return jnp.full((1, 1), SCALE)


def none(params, t, x, y):
    return jnp.zeros(1)


def feedback(params, t, x, y):
    """The best linear control: the mean by which the guided step shifts its noise."""
    transition, messages, root = params
    message = jax.tree.map(lambda a: a[jnp.round(t * STEPS).astype(int) + 1], messages)
    state = jnp.concatenate([x, y[0]])
    slope = message.linear - message.precision @ (transition.matrix @ state)
    shift = root @ slope / (1 + root @ message.precision @ root)
    return shift[None] * np.sqrt(STEPS)


def log_likelihood(params, path):
    seen = path[STEPS // 4 :: STEPS // 4, 0]
    return jnp.sum(jax.scipy.stats.norm.logpdf(jnp.asarray(SEEN), seen, SPREAD))


def augmented(process):
    """Drift matrix and dispersion of (X, Y)."""
    weights, rates = np.asarray(process.weights), np.asarray(process.rates)
    matrix = np.diag(np.concatenate([[RATE], -rates]))
    matrix[0, 1:] = -SCALE * weights * rates
    return matrix, np.concatenate([[SCALE * weights.sum()], np.ones(len(rates))])


def evidence(process):
    """Kalman's, by the exact transitions between observations."""
    matrix, push = augmented(process)
    size = len(push)
    step = markov.linear_diffusion(
        jnp.asarray(matrix), jnp.zeros(size), jnp.asarray(push)[:, None], 0.25
    )
    start = core.gaussian(START * jnp.eye(size)[0], core.Diagonal(jnp.zeros(size)))
    initial = step.push(start)
    see = markov.linear_gaussian(jnp.eye(size)[:1], core.Diagonal(jnp.array([SPREAD])))
    model = markov.state_space(initial, step, see)
    return markov.filter(model, jnp.asarray(SEEN)[:, None]).log_evidence[-1]


def controlled(process):
    """The equation under the control that the backward messages of Euler's chain give."""
    matrix, push = augmented(process)
    size = len(push)
    root = jnp.asarray(push) / np.sqrt(STEPS)
    move = jnp.eye(size) + jnp.asarray(matrix) / STEPS
    transition = markov.LinearGaussian(move, jnp.zeros(size), root[:, None])
    start = core.gaussian(START * jnp.eye(size)[0], core.Diagonal(jnp.zeros(size)))
    see = markov.linear_gaussian(jnp.eye(size)[:1], core.Diagonal(jnp.array([SPREAD])))
    there = np.zeros(STEPS + 1, bool)
    there[STEPS // 4 :: STEPS // 4] = True
    data = np.zeros((STEPS + 1, 1))
    data[there, 0] = SEEN
    back = markov.backward_filter(
        markov.state_space(start, transition, see), jnp.asarray(data), observed=jnp.asarray(there)
    )
    params = transition, back.messages, root
    return vi.latent_sde(process, drift, dispersion, feedback, params)


def draws(sde, key, count):
    def one(key):
        noise = core.Independent(key, 0, 0, (1,), jnp.float64)
        return vi.latent_sde_elbo(noise, sde, jnp.array([START]), jnp.asarray(GRID), log_likelihood)

    return jax.jit(jax.vmap(one))(jax.random.split(key, count))


def test_bound_of_a_linear_equation_is_the_evidence(x64, key):
    process = driver(0.7)
    exact = evidence(process)
    found = draws(controlled(process), key, 500)
    mean, error = found.log_weight.mean(), found.log_weight.std() / np.sqrt(500)
    assert abs(mean - exact) + 4 * error < 0.05
    # the bound has the same expectation
    error = (found.bound - found.log_weight).std() / np.sqrt(500)
    assert abs(found.bound.mean() - mean) < 4 * error
    # the prior bounds it too, far below; its weights average to the evidence
    prior = vi.latent_sde(process, drift, dispersion, none)
    loose = draws(prior, key, 20_000)
    assert loose.bound.mean() < exact - 0.5
    assert loose.cost.max() == 0
    weights = np.exp(np.asarray(loose.log_likelihood - exact))
    # what Euler's steps are off, seen by the controlled mean, is below 0.05
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(20_000) + 0.05


class Impulse:
    """Noise of the first step alone."""

    def increment(self, t, s):
        return jnp.where(t == 0, 1.0, 0.0)[None]


def test_an_impulse_is_answered_by_the_kernel(x64):
    """X = B^ for no drift: each Y forgets by 1 - gamma dt a step."""
    process = driver(0.7)
    sde = vi.latent_sde(
        process, lambda params, t, x: 0 * x, lambda params, t, x: jnp.ones((1, 1)), none
    )
    found = vi.latent_sde_elbo(
        Impulse(), sde, jnp.zeros(1), jnp.asarray(GRID), lambda params, path: jnp.sum(path)
    )
    kept = (1 - process.rates[None] / STEPS) ** np.arange(STEPS)[:, None]
    np.testing.assert_allclose(
        found.path[1:, 0], kept @ process.weights / np.sqrt(STEPS), atol=1e-12
    )


def test_gradient_in_the_hurst_index(x64, key):
    noise = core.Independent(key, 0, 0, (1,), jnp.float64)

    def bound(hurst, gain):
        sde = vi.latent_sde(
            vi.fractional_brownian(hurst),
            drift,
            dispersion,
            lambda params, t, x, y: params * jnp.sum(y, axis=1) - x,
            gain,
        )
        times, start = jnp.asarray(GRID), jnp.array([START])
        return vi.latent_sde_elbo(noise, sde, start, times, log_likelihood).bound

    value = jax.jit(bound)
    slopes = jax.jit(jax.grad(bound, (0, 1)))(0.6, 0.1)
    for slope, (dh, dg) in zip(slopes, ((1e-5, 0), (0, 1e-5)), strict=True):
        change = value(0.6 + dh, 0.1 + dg) - value(0.6 - dh, 0.1 - dg)
        np.testing.assert_allclose(slope, change / 2e-5, rtol=1e-6)


def test_another_index_does_not_compile_anew(x64):
    traced = []

    @jax.jit
    def variance(process):
        traced.append(1)
        return process.covariance(jnp.ones(1))

    first, second = variance(driver(0.6)), variance(driver(0.8))
    assert len(traced) == 1
    assert first != second


def test_what_does_not_fit_is_said(key):
    with pytest.raises(ValueError, match="between 0 and 1"):
        vi.fractional_brownian(1.0)
    with pytest.raises(ValueError, match="told apart"):
        vi.fractional_brownian(0.7, vi.geometric_rates(12, 2.0))
    with pytest.raises(ValueError, match="rates must be positive"):
        vi.fractional_brownian(0.7, np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="above 1"):
        vi.geometric_rates(3, 0.5)
    with pytest.raises(TypeError, match="concrete"):
        jax.jit(lambda t: vi.fractional_brownian(0.7, horizon=t).weights)(1.0)
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda h: vi.fractional_brownian(h).path_error())(0.7)
    noise = core.Independent(key, 0, 0, (1,), jnp.float32)
    process, start = driver(0.7), jnp.array([START])

    def run(sde=None, noise=noise, times=GRID, log_likelihood=log_likelihood):
        sde = vi.latent_sde(process, drift, dispersion, none) if sde is None else sde
        return vi.latent_sde_elbo(noise, sde, start, jnp.asarray(times), log_likelihood)

    with pytest.raises(ValueError, match="take more steps"):
        run(times=np.linspace(0, 1, 8))
    with pytest.raises(ValueError, match="must ascend"):
        run(times=GRID[::-1])
    with pytest.raises(ValueError, match="control must give"):
        run(vi.latent_sde(process, drift, dispersion, lambda p, t, x, y: y))
    with pytest.raises(ValueError, match="dispersion must give"):
        run(vi.latent_sde(process, drift, drift, none))
    with pytest.raises(ValueError, match=r"noise\.increment must give"):
        run(noise=core.Independent(key, 0, 0, (2,), jnp.float32))
    with pytest.raises(ValueError, match="one number"):
        run(log_likelihood=lambda params, path: path)
