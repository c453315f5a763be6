"""Doob's transform against bridges in closed form, its equation, and densities on a fine grid."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.tree_util import Partial

from jaxinf import core, guide, markov

# one noise for two numbers, of which one is seen: the process moves on a plane by a line of noise
MATRIX = np.array([[-0.6, 1.0], [-0.5, -0.3]])
OFFSET = np.array([0.3, -0.4])
SIGMA = np.array([[0.0], [0.8]])
VIEW = np.array([[1.0, 0.5]])
Y, END, START = np.array([0.7]), 1.3, np.array([-0.5, 0.2])


kernel_of = jax.jit(guide.LinearBridge.kernel)


def conditioned(noise):
    view = markov.linear_gaussian(jnp.asarray(VIEW), core.Diagonal(jnp.array([noise])))
    return guide.doob(*map(jnp.asarray, (MATRIX, OFFSET, SIGMA)), view, jnp.asarray(Y), END)


def moved(t, s=None):
    """Mean of X_t from the start, and covariance with X_s for s >= t: by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(30)
    past = (nodes + 1) * t / 2
    powers = [scipy.linalg.expm(MATRIX * u) for u in past]
    drift = sum(w * p @ OFFSET for w, p in zip(weights * t / 2, powers, strict=True))
    spread = sum(
        w * p @ SIGMA @ SIGMA.T @ p.T for w, p in zip(weights * t / 2, powers, strict=True)
    )
    later = scipy.linalg.expm(MATRIX * (0.0 if s is None else s - t))
    return scipy.linalg.expm(MATRIX * t) @ START + drift, spread @ later.T


def normal(y, mean, variance):
    return float(-((y - mean) ** 2) / variance / 2 - np.log(2 * np.pi * variance) / 2)


@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("t", [0.5, END])
def test_its_marginals_are_gaussian_conditioning(noise, t, x64):
    """The law of X_t given X_0 and y, from joint moments by quadrature; at the end too."""
    bridge = conditioned(noise)
    (mean, spread), (_, across), (end, total) = moved(t), moved(t, END), moved(END)
    variance = (VIEW @ total @ VIEW.T)[0, 0] + noise**2
    gain = across @ VIEW.T / variance
    got = kernel_of(bridge, 0.0, t)
    apart = Y - VIEW @ end
    np.testing.assert_allclose(got.at(jnp.asarray(START))[0], mean + gain @ apart, rtol=1e-10)
    np.testing.assert_allclose(got.root @ got.root.T, spread - gain @ gain.T * variance, atol=1e-12)
    evidence = normal(Y[0], (VIEW @ end)[0], variance)
    np.testing.assert_allclose(bridge(jnp.asarray(START), 0.0), evidence, rtol=1e-10)


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_transitions_compose(noise, x64):
    """Chapman and Kolmogorov: over any time between."""
    bridge = conditioned(noise)
    both, whole = (
        kernel_of(bridge, 0.1, 0.7).then(kernel_of(bridge, 0.7, END)),
        kernel_of(bridge, 0.1, END),
    )
    for one, two in ((both.matrix, whole.matrix), (both.offset, whole.offset)):
        np.testing.assert_allclose(one, two, atol=1e-11)
    np.testing.assert_allclose(both.root @ both.root.T, whole.root @ whole.root.T, atol=1e-11)


@jax.jit
def slopes(h, x, t):
    """d_t log h, its gradient and Hessian, and the drift."""
    return jax.grad(h, 1)(x, t), jax.grad(h)(x, t), jax.hessian(h)(x, t), h.drift(x, t)


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_h_solves_the_backward_equation(noise, x64):
    """d_t log h + b . grad log h + tr(a hess log h) / 2 + |sigma' grad log h|^2 / 2 = 0."""
    h, x, t = conditioned(noise), jnp.array([0.4, -1.1]), jnp.asarray(0.8)
    rate, slope, bend, drift = slopes(h, x, t)
    free = MATRIX @ x + OFFSET
    rest = jnp.trace(SIGMA @ SIGMA.T @ bend) / 2 + jnp.sum((SIGMA.T @ slope) ** 2) / 2
    np.testing.assert_allclose(rate + free @ slope + rest, 0.0, atol=1e-9)
    np.testing.assert_allclose(drift, free + SIGMA @ SIGMA.T @ slope, rtol=1e-10)
    # and the drift is what short transitions do: to second order by Richardson's extrapolation
    move = [(kernel_of(h, t, t + dt).at(x)[0] - x) / dt for dt in (2e-3, 1e-3)]
    error = [np.abs(got - drift).max() for got in (move[1], 2 * move[1] - move[0])]
    assert error[1] < 20 * error[0] ** 2 < 1e-2


def test_a_brownian_bridge(x64, key):
    """From a to b: mean a + (b - a) t, covariance s (1 - t), drift (b - x) / (1 - t)."""
    view = markov.linear_gaussian(jnp.eye(1), core.Diagonal(jnp.zeros(1)))
    bridge = guide.doob(jnp.zeros((1, 1)), jnp.zeros(1), jnp.eye(1), view, jnp.ones(1), 1.0)
    x, t = jnp.array([0.3]), 0.6
    np.testing.assert_allclose(bridge.drift(x, t), (1 - x) / (1 - t), rtol=1e-12)
    np.testing.assert_allclose(bridge(x, t), normal(1.0, 0.3, 0.4), rtol=1e-12)
    times = jnp.array([0.0, 0.05, 0.5, 0.51, 0.9, 1.0])  # a grid of any spacing
    draw = jax.jit(jax.vmap(lambda key: bridge.path(key, jnp.array([-1.0]), times)[:, 0]))
    paths = draw(jax.random.split(key, 20_000))
    np.testing.assert_allclose(paths[:, -1], 1.0, atol=1e-12)
    inner = np.asarray(times[1:-1])
    apart = np.asarray(paths[:, 1:-1]) - (2 * inner - 1)
    exact = np.minimum.outer(inner, inner) - np.outer(inner, inner)
    z = apart.mean(axis=0) / np.sqrt(np.diag(exact) / len(paths))
    assert np.abs(z).max() < 4
    spread = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / len(paths))
    assert np.abs((apart.T @ apart / len(paths) - exact) / spread).max() < 4


def wander(params, t, x):
    return params * x


def uneven(params, t, x):
    return jnp.diag(1 + x**2)


def power(p, x, t):
    return jnp.sum(p * jnp.log(x))


def power_slope(p, x, t):
    return p / x


@pytest.mark.parametrize("gradient", [None, Partial(power_slope, 2.0)])
def test_any_h_moves_the_drift_by_its_slope(gradient, x64):
    """Of h = x^2 with dispersion 1 + x^2: b + 2 (1 + x^2)^2 / x, coordinate by coordinate."""
    process = markov.diffusion(wander, uneven, 0.7)
    x = jnp.array([0.5, 2.0])
    got = guide.h_transform(process, Partial(power, 2.0), gradient)
    wanted = 0.7 * x + 2 * (1 + x**2) ** 2 / x
    np.testing.assert_allclose(got.drift(got.params, 0.0, x), wanted, rtol=1e-12)
    np.testing.assert_allclose(got.dispersion(got.params, 0.0, x), uneven(0, 0, x), rtol=1e-12)


def line(params, t, x):
    return params[0] @ x + params[1]


def constant(params, t, x):
    return params[2]


def test_the_transform_of_a_linear_process_is_the_conditioned_one(x64):
    h = conditioned(0.4)
    process = markov.diffusion(line, constant, (h.matrix, h.offset, h.dispersion))
    got, x = guide.h_transform(process, h), jnp.array([0.4, -1.1])
    np.testing.assert_allclose(got.drift(got.params, 0.3, x), h.drift(x, 0.3), rtol=1e-10)


def double_well(params, t, x):
    return 4 * x - 4 * x**3


def root(params, t, x):
    return params * jnp.eye(1)


def proxy(rate, noise, sigma=0.9):
    view = markov.linear_gaussian(jnp.eye(1), core.Diagonal(jnp.array([noise])))
    line = jnp.array([[-rate]]), jnp.array([rate]), sigma * jnp.eye(1)
    return guide.doob(*line, view, jnp.ones(1), 1.0)


def drawn(key, process, guided, count, steps=40):
    draw = jax.vmap(guide.guided_bridge, (0, None, None, None, None))
    return draw(
        jax.random.split(key, count),
        process,
        guided,
        -jnp.ones(1),
        jnp.linspace(0.0, 1.0, steps + 1),
    )


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_weights_average_to_the_density_of_a_double_well(noise, key):
    """From well to well: Euler's density by products on a fine grid, and half way its bridge."""
    process = markov.diffusion(double_well, root, 0.9)
    out = drawn(key, process, proxy(1.0, noise), 4000)
    grid = np.linspace(-3, 3, 1201)
    dx, dt = grid[1] - grid[0], 1 / 40

    def density(y, mean, variance):
        return np.exp(-((y - mean) ** 2) / variance / 2) / np.sqrt(2 * np.pi * variance)

    step = density(grid[None], (grid + dt * double_well(0, 0, grid))[:, None], 0.81 * dt) * dx
    last = density(1.0, grid + dt * double_well(0, 0, grid), 0.81 * dt + noise**2)
    h, q = last, step[np.argmin(np.abs(grid + 1))]
    for _ in range(19):
        h, q = step @ h, q @ step
    truth, middle = q @ h, (q * h) @ grid / (q @ h)
    w = np.exp(np.asarray(out.log_weight, np.float64)) / truth
    assert w.std() < 3  # a tenth of the draws is worth something
    assert abs(w.mean() - 1) < 4 * w.std() / np.sqrt(w.size)
    found = w * (np.asarray(out.x[:, 20, 0]) - middle)
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(w.size)


def rest(params, t, x):
    return 1 - x


def test_its_own_proxy_has_even_weights(x64, key):
    """Of a linear process all that is left is Euler's error."""
    process, guided = markov.diffusion(rest, root, 0.9), proxy(1.0, 0.0)
    exact = guided(-jnp.ones(1), 0.0)
    coarse, fine = (drawn(key, process, guided, 300, steps).log_weight for steps in (40, 160))
    euler = (
        1 + (-2.0) * (1 - 1 / 160) ** 160,
        0.81 / 160 * sum((1 - 1 / 160) ** (2 * i) for i in range(160)),
    )
    w = np.exp(np.asarray(fine))
    density = np.exp(normal(1.0, *euler))
    assert abs(w.mean() - density) < 4 * w.std() / np.sqrt(w.size)
    assert fine.std() < 0.7 * coarse.std() < 0.1
    assert abs(fine.mean() - exact) < 0.05


def test_records_with_other_numbers_compile_once(key):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def draw(keys, bridge, x):
        times = jnp.linspace(0.0, 1.0, 4)
        return jax.vmap(lambda key: bridge.path(key, x, times))(keys)

    @jax.jit
    @chex.assert_max_traces(1)
    def weigh(keys, process, bridge):
        return drawn(key, process, bridge, 2, 3).log_weight

    for noise in (0.1, 0.2):
        draw(jax.random.split(key), proxy(1.0, noise), jnp.zeros(1))
        weigh(key, markov.diffusion(double_well, root, 0.9 + noise), proxy(1.0, noise))


def test_bad_input():
    view = markov.linear_gaussian(jnp.eye(2), core.Diagonal(jnp.ones(2)))
    zeros = jnp.zeros((1, 1)), jnp.zeros(1), jnp.eye(1)
    with pytest.raises(ValueError, match="the view's matrix shape"):
        guide.doob(*zeros, view, jnp.ones(2), 1.0)
    view = markov.linear_gaussian(jnp.eye(1), core.Diagonal(jnp.ones(1)))
    with pytest.raises(ValueError, match="end must be positive"):
        guide.doob(*zeros, view, jnp.ones(1), 0.0)
    bridge = guide.doob(*zeros, view, jnp.ones(1), 1.0)
    process = markov.diffusion(double_well, root, 0.9)
    with pytest.raises(ValueError, match="must end where y is seen, at 1"):
        guide.guided_bridge(
            jax.random.key(0), process, bridge, jnp.ones(1), jnp.linspace(0.0, 0.9, 4)
        )
