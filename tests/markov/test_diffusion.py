"""Diffusions as kernels against exact transitions and a fine grid."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import core, markov

MATRIX = jnp.array([[-1.0, 0.7], [0.2, -0.5]])


def drift(params, t, x):
    return params[0] @ x + params[1] + 0 * t


def dispersion(params, t, x):
    return params[2]


def test_the_linear_transition_is_the_limit_of_euler_steps(x64):
    """Composed exactly, n Euler steps err as 1 / n; Richardson's extrapolation as 1 / n^2."""
    matrix, offset = jnp.asarray(MATRIX, float), jnp.array([0.3, -1.0])
    sigma = jnp.array([[0.5], [0.8]])  # one noise for two numbers
    exact = markov.linear_diffusion(matrix, offset, sigma, 0.8)

    def steps(n):
        process = markov.diffusion(drift, dispersion, (matrix, offset, sigma))
        step = markov.linearise(markov.euler(process, 0.0, 0.8 / n), jnp.zeros(2))
        total = step
        for _ in range(n - 1):
            total = total.then(step)
        return total.matrix, total.offset, total.root @ total.root.T

    coarse, fine = steps(32), steps(64)
    better = jax.tree.map(lambda a, b: 2 * b - a, coarse, fine)
    truth = exact.matrix, exact.offset, exact.root @ exact.root.T
    for one, two, three in zip(fine, better, truth, strict=True):
        first, second = jnp.abs(one - three).max(), jnp.abs(two - three).max()
        assert 1e-4 < first < 0.05
        assert second < 20 * first**2


def test_an_ornstein_uhlenbeck_transition_is_known(x64):
    k = markov.linear_diffusion(jnp.array([[-2.0]]), jnp.array([1.0]), jnp.array([[0.6]]), 0.3)
    decay = np.exp(-0.6)
    chex.assert_trees_all_close(
        (k.matrix[0, 0], k.offset[0], (k.root @ k.root.T)[0, 0]),
        (decay, 0.5 * (1 - decay), 0.36 * (1 - decay**2) / 4),
        rtol=1e-12,
    )


def double_well(params, t, x):
    return 4 * x - 4 * x**3


def unit(params, t, x):
    return params * jnp.eye(1)


def rest(params, x):
    return params - 4 * x**3


def test_the_exponential_step_is_exact_in_the_linear_part(x64):
    zero = markov.semilinear(
        jnp.array([[-2.0]]), lambda p, x: p, jnp.array([[0.6]]), 0.3, jnp.ones(1)
    )
    exact = markov.linear_diffusion(jnp.array([[-2.0]]), jnp.ones(1), jnp.array([[0.6]]), 0.3)
    x = jnp.array([0.7])
    chex.assert_trees_all_close(zero.at(x), exact.at(x), rtol=1e-12)
    # with little time it is Euler's step
    small = markov.semilinear(jnp.array([[4.0]]), rest, jnp.array([[1.0]]), 1e-4, 0.0)
    euler = markov.euler(markov.diffusion(double_well, unit, 1.0), 0.0, 1e-4)
    np.testing.assert_allclose(small.at(x)[0], euler.at(x)[0], atol=1e-6)


def test_a_bridge_of_a_double_well_has_the_transition_density_as_mean_weight(x64):
    """Guided by a line between wells: E[w] is the density of the end, by Chapman-Kolmogorov."""
    n, dt, blur = 40, 0.025, 0.1
    process = markov.diffusion(double_well, unit, 0.9)
    kernel = markov.euler(process, 0.0, dt)
    view = markov.linear_gaussian(jnp.eye(1), core.Diagonal(jnp.array([blur])))
    law = core.gaussian(jnp.array([-1.0]), core.Diagonal(jnp.array([0.05])))
    model = markov.state_space(law, kernel, view)
    seen = jnp.arange(n + 1) == n
    y = jnp.zeros((n + 1, 1)).at[-1, 0].set(1.0)
    line = markov.linear_diffusion(jnp.array([[-1.0]]), jnp.ones(1), jnp.array([[0.9]]), dt)
    proxy = markov.state_space(law, line, view)
    back = markov.backward_filter(model, y, observed=seen, surrogate=proxy)
    keys = jax.random.split(jax.random.key(0), 4000)
    paths, log_weight = jax.vmap(lambda key: markov.forward_guide(key, model, back))(keys)

    grid = jnp.linspace(-3, 3, 1201)
    width = grid[1] - grid[0]
    normal = jax.scipy.stats.norm.pdf
    mean = grid + dt * double_well(0, 0, grid)
    step = normal(grid[None, :], mean[:, None], 0.9 * np.sqrt(dt)) * width
    p = normal(grid, -1.0, 0.05) * width
    for _ in range(n):
        p = p @ step
    truth = jnp.sum(p * normal(1.0, grid, blur))
    w = jnp.exp(log_weight) / truth
    assert w.std() < 3  # a tenth of the draws is worth something
    assert jnp.abs(w.mean() - 1) < 4 * w.std() / np.sqrt(len(keys))
    middle = paths[:, n // 2, 0]
    q = normal(grid, -1.0, 0.05) * width
    for _ in range(n // 2):
        q = q @ step
    h = normal(1.0, grid, blur)
    for _ in range(n // 2):
        h = step @ h
    exact = jnp.sum(q * h * grid) / jnp.sum(q * h)
    found = w * (middle - exact)
    assert jnp.abs(found.mean()) < 4 * found.std() / np.sqrt(len(keys))


def bend(params, x):
    """Quadratic, so that third-degree cubature has its moments exactly."""
    return jnp.array([x[0] ** 2, 2 * x[0] - 3 * x[1]])


def half(params, x):
    return jnp.array([[0.5], [0.2]])


def test_regression_has_the_moments_of_a_step(x64):
    """Of a quadratic with a correlated prior: mean and slope; equal to a linear step itself."""
    spread = jnp.array([[1.0, 0.4], [0.4, 0.5]])
    prior = core.gaussian(jnp.array([0.7, -0.2]), core.dense(spread))
    line = markov.regress(markov.gaussian_step(bend, half), prior)
    mean = jnp.array([0.49 + 1.0, 1.4 + 0.6])
    np.testing.assert_allclose(line.matrix @ prior.mean + line.offset, mean, rtol=1e-12)
    np.testing.assert_allclose(line.matrix, [[1.4, 0.0], [2.0, -3.0]], atol=1e-12)
    exact = markov.linear_gaussian(jnp.array([[1.0, 2.0], [0.3, -1.0]]), core.dense(spread))
    same = markov.regress(exact, prior)
    np.testing.assert_allclose(same.matrix, exact.matrix, rtol=1e-12)
    np.testing.assert_allclose(same.root @ same.root.T, spread, rtol=1e-12, atol=1e-14)


def test_kernels_built_anew_compile_once():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def draw(key, kernel):
        return kernel.sample(key, jnp.zeros(1))

    for t in (0.0, 0.5):
        process = markov.diffusion(double_well, unit, 0.9 + t)
        draw(jax.random.key(0), markov.euler(process, t, 0.1))
