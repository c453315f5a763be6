"""Coin sampling against its algorithm, scale invariance, and the directions' closed forms."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxinf import core, diagnostics, mc, target
from jaxinf.mc.coin import _coin
from jaxinf.run.mesh import make_mesh

PRECISION = np.linalg.inv(np.array([[1.0, 0.8], [0.8, 1.0]]))


def quadratic(precision, x):
    return -x @ precision @ x / 2


def correlated():
    return target.density(quadratic, jnp.zeros(2), jnp.asarray(PRECISION))


def line():
    return target.density(lambda _, x: -(x[0] ** 2) / 2, jnp.zeros(1))


@core.record
class Scaled:
    """A direction in another unit."""

    by: core.Leaf
    inner: core.Leaf

    def __call__(self, density, particles):
        return self.by * self.inner(density, particles)


def numpy_svgd(x):
    """The direction in float64 by its definition, one pair after the other in its derivatives."""
    n = len(x)
    apart = x[:, None] - x[None]
    squares = (apart**2).sum(-1)
    h = np.median(squares) / np.log(n + 1)
    k = np.exp(-squares / h)
    return (k @ (-x @ PRECISION) + (2 / h * k[..., None] * apart).sum(1)) / n


def numpy_coin(gradients, x0, alpha=0.0):
    """The paper's algorithm for given gradients, in float64; all iterates."""
    x, path = x0.copy(), []
    total, absolute, largest, reward = (np.zeros_like(x0) for _ in range(4))
    for g in gradients:
        c = -g
        largest = np.maximum(largest, abs(c))
        absolute += abs(c)
        total += c
        reward = np.maximum(reward + (x - x0) * c, 0)
        x = x0 + total / (largest * np.maximum(absolute + largest, alpha * largest)) * (
            largest + reward
        )
        path.append(x)
    return np.array(path)


@pytest.mark.parametrize("alpha", [0.0, 100.0])
def test_the_transformation_is_the_algorithm(x64, alpha):
    rng = np.random.default_rng(0)
    gradients, x0 = rng.normal(size=(40, 3)) + 0.3, rng.normal(size=3)
    betting = mc.coin_betting(alpha)
    params = {"a": jnp.asarray(x0[:1]), "b": jnp.asarray(x0[1:])}
    state, found = betting.init(params), []
    for g in gradients:
        tree = {"a": jnp.asarray(g[:1]), "b": jnp.asarray(g[1:])}
        updates, state = betting.update(tree, state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.concatenate([params["a"], params["b"]]))
    np.testing.assert_allclose(found, numpy_coin(gradients, x0, alpha), rtol=1e-12)


def test_coordinates_without_outcomes_stay():
    betting = mc.coin_betting()
    x = jnp.array([1.0, 2.0])
    updates, _ = betting.update(jnp.array([0.0, 1e-30]), betting.init(x), x)
    np.testing.assert_array_equal(updates, [0.0, -0.5])


def test_a_correlated_gaussian():
    """As SVGD with a well-chosen step, in float64 by numpy; both stop where the direction is 0."""
    start = jax.random.normal(jax.random.key(0), (50, 2))
    run = mc.coin(correlated(), start, steps=3000)
    x = np.asarray(start, np.float64)
    for _ in range(3000):
        x = x + 0.6 * numpy_svgd(x)
    found = np.asarray(run.particles, np.float64)
    # particles still slide along each other, with moments that are those of the end
    assert max(abs(numpy_svgd(found)).max(), abs(numpy_svgd(x)).max()) < 5e-4
    further = found.copy()
    for _ in range(500):
        further = further + 0.6 * numpy_svgd(further)
    np.testing.assert_allclose(np.cov(found.T), np.cov(further.T), atol=5e-4)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    # fifty particles have many fixed points, whose variances differ by 0.4 %
    np.testing.assert_allclose(np.cov(found.T), np.cov(x.T), atol=5e-3)
    np.testing.assert_allclose(np.cov(found.T), [[0.907, 0.723], [0.723, 0.907]], atol=5e-3)
    assert run.info.finite.all()
    assert run.info.speed[-1] < 1e-4 * run.info.speed[0]


def test_the_unit_of_the_direction_does_not_matter(x64):
    """Powers of two to the last bit, others to rounding; a fixed step stalls or explodes."""
    start = jax.random.normal(jax.random.key(1), (50, 2))

    def run(by):
        return mc.coin(correlated(), start, direction=Scaled(by, mc.svgd()), steps=300).particles

    alone = run(1.0)
    for by in (2.0**-10, 2.0**10):
        np.testing.assert_array_equal(run(by), alone)
    for by in (1e-3, 1e3):
        np.testing.assert_allclose(run(by), alone, atol=1e-8)

    @jax.jit
    def fixed(by):
        def step(x, _):
            return x + 0.3 * by * mc.svgd()(correlated(), x), None

        return jax.lax.scan(step, start, None, length=300)[0]

    assert jnp.max(jnp.abs(fixed(1e-3) - start)) < 0.3  # it has hardly left
    assert not jnp.all(jnp.abs(fixed(1e3)) < 1e3)  # NaN or far away


@pytest.mark.parametrize("kernel", [mc.rbf(0.7), mc.imq(1.3, -0.4)], ids=["rbf", "imq"])
def test_directions_by_their_definitions(x64, kernel):
    """SVGD's and KSD's, pair by pair with the kernel's derivatives by automatic differentiation."""
    x = jax.random.normal(jax.random.key(2), (7, 2))
    score = jax.grad(correlated().log_prob)

    def k(x, y):
        return kernel(jnp.sum((x - y) ** 2)[None, None])[0][0, 0]

    def move(y):
        return sum(k(x_j, y) * score(x_j) + jax.grad(k)(x_j, y) for x_j in x) / len(x)

    wanted = jnp.stack([move(y) for y in x])
    np.testing.assert_allclose(mc.svgd(kernel)(correlated(), x), wanted, rtol=1e-10)

    def stein(x, y):
        across = jnp.trace(jax.jacfwd(jax.grad(k), 1)(x, y))
        mixed = score(x) @ jax.grad(k, 1)(x, y) + score(y) @ jax.grad(k)(x, y)
        return score(x) @ score(y) * k(x, y) + mixed + across

    pairs = jax.jit(jax.vmap(jax.vmap(stein, (None, 0)), (0, None)))
    found = mc.ksd(kernel).discrepancy(correlated(), x)
    np.testing.assert_allclose(found, jnp.mean(pairs(x, x)), rtol=1e-10)
    slope = jax.jit(jax.vmap(jax.vmap(jax.grad(stein, 1), (0, None)), (None, 0)))(x, x)
    wanted = -jnp.mean(slope, axis=1)
    np.testing.assert_allclose(mc.ksd(kernel)(correlated(), x), wanted, rtol=1e-9, atol=1e-12)


def test_kernel_stein_discrepancy_descent():
    """It is the discrepancy of the diagnostics, and coins bring it down to rounding's level."""
    start = 2 + jax.random.normal(jax.random.key(3), (30, 2))
    direction = mc.ksd(mc.imq())
    scores = jax.vmap(jax.grad(correlated().log_prob))(start)
    wanted = diagnostics.kernel_stein_discrepancy(start, scores).v_statistic
    np.testing.assert_allclose(direction.discrepancy(correlated(), start), wanted, rtol=1e-5)
    run = mc.coin(correlated(), start, direction=direction, steps=1500)
    draws = jax.random.multivariate_normal(
        jax.random.key(4), jnp.zeros(2), jnp.linalg.inv(jnp.asarray(PRECISION)), (30,)
    )
    # descent does better than independent draws of the target, and is symmetric about its mean
    drawn = direction.discrepancy(correlated(), draws)
    assert direction.discrepancy(correlated(), run.particles) < 0.1 * drawn
    np.testing.assert_allclose(run.particles.mean(0), 0, atol=0.02)


def hermite(x, modes):
    """Orthonormal Hermite polynomials 1 ... modes, and their derivatives, [n, modes]."""
    basis = np.eye(modes + 1)
    norm = np.array([math.sqrt(math.factorial(k)) for k in range(modes + 1)])
    poly = np.polynomial.hermite_e
    values = np.stack([poly.hermeval(x, row) for row in basis], 1) / norm
    slopes = np.stack([poly.hermeval(x, poly.hermeder(row)) for row in basis], 1) / norm
    return values[:, 1:], slopes[:, 1:]


def test_lawgd_finds_the_eigenfunctions_of_a_gaussian(x64):
    """Eigenvalues 1, 2, ... and Hermite's polynomials, with an error of second order."""
    x, errors = np.linspace(-1.5, 1.5, 9), []
    values, slopes = hermite(x, 4)
    wanted = -slopes @ (values.mean(0) / np.arange(1, 5))
    for points in (101, 201, 401):
        direction = mc.lawgd(line(), -8.0, 8.0, points=points, modes=4)
        found = direction(line(), jnp.asarray(x)[:, None])[:, 0]
        errors.append(
            np.append(abs(found - wanted), abs(np.asarray(direction.eigenvalues) - [1, 2, 3, 4]))
        )
    rates = np.log2([e.max() for e in errors[:-1]]) - np.log2([e.max() for e in errors[1:]])
    assert np.all(abs(rates - 2) < 0.25)
    assert errors[-1].max() < 5e-3


def test_lawgd_moves_particles_to_the_target():
    """At the end the objective is below that of the target's quantiles, which bounds moments."""
    modes, n = 10, 50
    direction = mc.lawgd(line(), -5.0, 5.0, modes=modes)
    start = 0.5 + 0.7 * jax.random.normal(jax.random.key(5), (n, 1))
    run = mc.coin(line(), start, direction=direction, steps=2000)

    def objective(x):
        return np.sum(hermite(x, modes)[0].mean(0) ** 2 / np.arange(1, modes + 1))

    normal = jax.scipy.stats.norm.ppf((jnp.arange(n) + 0.5) / n)
    found = np.asarray(run.particles[:, 0], np.float64)
    bound = objective(np.asarray(normal, np.float64))
    assert objective(found) < bound
    assert abs(found.mean()) < math.sqrt(bound)
    assert abs((found**2).mean() - 1) < math.sqrt(2 * 2 * bound)
    assert objective(np.asarray(start[:, 0])) > 10 * bound


def test_particles_that_fail_stay_and_it_shows():
    bad = target.density(lambda _, x: jnp.sum(jnp.log(x)), jnp.zeros(2))
    start = jnp.array([[1.0, -1.0], [2.0, 1.0]])
    run = mc.coin(bad, start, steps=5)
    assert run.info.finite.all()  # log's derivative is finite below 0: the density alone is not
    broken = mc.coin(bad, start.at[0, 0].set(0.0), steps=5)
    assert not broken.info.finite.any()
    np.testing.assert_array_equal(broken.particles, start.at[0, 0].set(0.0))


def test_it_compiles_once_and_composes():
    chex.clear_trace_counter()
    counted = jax.jit(
        chex.assert_max_traces(lambda d, x, k, a: mc.coin(d, x, direction=k, steps=20, alpha=a), 1)
    )
    for seed in range(3):
        density = target.density(quadratic, jnp.zeros(2), jnp.eye(2) * (1.0 + seed))
        start = jax.random.normal(jax.random.key(seed), (16, 2))
        counted(density, start, mc.svgd(mc.rbf(0.5 + seed)), 0.1 * seed)
    before = _coin._cache_size()
    for seed in range(3):
        start = jax.random.normal(jax.random.key(seed), (16, 2))
        mc.coin(correlated(), start, direction=mc.ksd(mc.imq(1.0 + seed)), steps=7)
    assert _coin._cache_size() == before + 1

    starts = jax.random.normal(jax.random.key(9), (8, 16, 2))

    def ends(x):
        return mc.coin(correlated(), x, steps=20).particles

    mesh = make_mesh("data=8")
    inner = jax.shard_map(jax.vmap(ends), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    found = jax.jit(inner)(starts)
    for i in (0, 7):
        np.testing.assert_allclose(found[i], ends(starts[i]), rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(ends(x) ** 2))(starts[0])
    assert jnp.all(jnp.isfinite(slope))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mc.coin(correlated(), jnp.zeros((5, 3))), "shape"),
        (lambda: mc.coin(correlated(), jnp.zeros((1, 2))), "at least 2"),
        (lambda: mc.coin(correlated(), jnp.zeros((5, 2)), steps=0), "steps"),
        (lambda: mc.coin(correlated(), jnp.zeros((5, 2)), alpha=-1.0), "alpha"),
        (lambda: mc.coin_betting().update(1.0, mc.coin_betting().init(1.0)), "needs the param"),
        (lambda: mc.rbf(0.0), "positive"),
        (lambda: mc.imq(-1.0), "positive"),
        (lambda: mc.imq(exponent=-2.0), "exponent"),
        (lambda: mc.lawgd(correlated(), -1.0, 1.0), "dimension"),
        (lambda: mc.lawgd(line(), 1.0, -1.0), "low < high"),
        (lambda: mc.lawgd(line(), -1.0, 1.0, points=5, modes=5), "modes"),
        (
            lambda: mc.lawgd(target.density(lambda _, x: jnp.log(x[0]), jnp.zeros(1)), -1.0, 1.0),
            "not finite",
        ),
        (
            lambda: mc.lawgd(line(), -1.0, 1.0)(correlated(), jnp.zeros((5, 2))),
            "on a line",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lawgd_is_not_traced():
    def traced(precision):
        return mc.lawgd(
            target.density(lambda p, x: -p * x[0] ** 2, jnp.zeros(1), precision), -1.0, 1.0
        )

    with pytest.raises(TypeError, match="before jit"):
        jax.jit(traced)(1.0)
