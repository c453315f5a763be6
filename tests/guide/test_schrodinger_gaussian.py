"""The Gaussian bridge against the Schroedinger system, published formulas and its own drift."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxinf import core, guide

EPS = 0.7


def spread(seed, d, low=0.4, high=2.5):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return basis @ np.diag(np.geomspace(low, high, d)) @ basis.T


def ends(d):
    rng = np.random.default_rng(7)
    first = core.gaussian(jnp.asarray(rng.normal(size=d)), core.dense(jnp.asarray(spread(1, d))))
    last = core.gaussian(jnp.asarray(rng.normal(size=d)), core.full(jnp.asarray(spread(2, d))))
    return first, last


def reference(kind, d):
    if kind == "brownian":
        return None
    matrix = -0.8 * np.eye(d) + 0.5 * np.random.default_rng(3).normal(size=(d, d))
    return jnp.asarray(matrix)


def dense(law):
    return np.asarray(law.covariance.dense(law.mean.size))


@pytest.mark.parametrize("kind", ["brownian", "linear"])
@pytest.mark.parametrize("d", [1, 5])
def test_the_coupling_solves_the_schrodinger_system(x64, d, kind):
    """Marginals are exact, and its log density less the reference's is f(x) + g(y)."""
    start, end = ends(d)
    bridge = guide.gaussian_schrodinger(start, end, EPS, reference(kind, d))
    coupling = bridge.coupling()
    covariance = dense(coupling)
    np.testing.assert_allclose(
        coupling.mean, np.concatenate([start.mean, end.mean]), rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(covariance[:d, :d], dense(start), atol=1e-12)
    np.testing.assert_allclose(covariance[d:, d:], dense(end), atol=1e-11)
    kernel = bridge.reference(0.0, 1.0)

    def apart(x, y):
        return coupling.log_prob(jnp.concatenate([x, y])) - kernel.log_prob(x, y)

    x, x2, y, y2 = jax.random.normal(jax.random.key(1), (4, d), float)
    mixed = apart(x, y) - apart(x2, y) - apart(x, y2) + apart(x2, y2)
    assert abs(mixed) < 1e-9


@pytest.mark.parametrize("d", [4])
def test_the_published_cross_covariance(x64, d):
    """Janati et al.'s formula by SciPy's matrix roots, and Bunne et al.'s covariance in time."""
    start, end = ends(d)
    bridge = guide.gaussian_schrodinger(start, end, EPS)
    s0, s1 = dense(start), dense(end)
    root = scipy.linalg.sqrtm(s0).real
    inner = scipy.linalg.sqrtm(4 * root @ s1 @ root + EPS**2 * np.eye(d)).real
    cross = (root @ inner @ np.linalg.inv(root) - EPS * np.eye(d)) / 2
    np.testing.assert_allclose(dense(bridge.coupling())[:d, d:], cross, atol=1e-10)
    for t in (0.0, 0.3, 1.0):
        law = bridge.marginal(t)
        wanted = (1 - t) ** 2 * s0 + t**2 * s1 + t * (1 - t) * (cross + cross.T + EPS * np.eye(d))
        np.testing.assert_allclose(dense(law), wanted, atol=1e-10)
        mean = (1 - t) * start.mean + t * end.mean
        np.testing.assert_allclose(law.mean, mean, atol=1e-10)


@pytest.mark.parametrize(("variance", "wanted"), [(1.0, 0.618034), (4.0, 1.561553)])
def test_one_number(x64, variance, wanted):
    start = core.gaussian(jnp.zeros(1), core.Diagonal(jnp.ones(1)))
    end = core.gaussian(jnp.full(1, 2.0), core.Diagonal(jnp.full(1, variance**0.5)))
    found = dense(guide.gaussian_schrodinger(start, end).coupling())[0, 1]
    np.testing.assert_allclose(found, wanted, atol=5e-7)
    np.testing.assert_allclose(found, (np.sqrt(4 * variance + 1) - 1) / 2, atol=1e-12)


@pytest.mark.parametrize("kind", ["brownian", "linear"])
def test_transitions_compose(x64, kind):
    """Those over two intervals are that over both."""
    bridge = guide.gaussian_schrodinger(*ends(3), EPS, reference(kind, 3))
    both = bridge.transition(0.1, 0.4).then(bridge.transition(0.4, 0.9))
    whole = bridge.transition(0.1, 0.9)
    np.testing.assert_allclose(both.matrix, whole.matrix, atol=1e-11)
    np.testing.assert_allclose(both.offset, whole.offset, atol=1e-11)
    np.testing.assert_allclose(both.root @ both.root.T, whole.root @ whole.root.T, atol=1e-11)


def euler(bridge, law, steps, field):
    """Return mean and covariance after Euler's steps of a linear drift: exact, without draws."""
    mean, covariance = law.mean, law.covariance.dense(law.mean.size)

    def step(state, t):
        mean, covariance = state
        units = jnp.eye(mean.size)
        ahead = jax.vmap(lambda e: field(t, mean + e))(units) - field(t, mean)[None]
        move = units + ahead.T / steps  # exact, as the drift is affine
        noise = bridge.eps / steps * jnp.eye(mean.size)
        return (mean + field(t, mean) / steps, move @ covariance @ move.T + noise), None

    return jax.lax.scan(step, (mean, covariance), jnp.arange(steps) / steps)[0]


@pytest.mark.parametrize("kind", ["brownian", "linear"])
@pytest.mark.parametrize("way", ["forwards", "backwards"])
def test_the_drift_reaches_the_other_end_at_first_order(x64, way, kind):
    bridge = guide.gaussian_schrodinger(*ends(3), EPS, reference(kind, 3))
    back = way == "backwards"
    first, last = (bridge.end, bridge.start) if back else (bridge.start, bridge.end)

    def field(t, x):
        return bridge.backward_drift(1 - t, x) if back else bridge.drift(t, x)

    def error(steps):
        mean, covariance = jax.jit(euler, static_argnums=(2, 3))(bridge, first, steps, field)
        off = np.asarray(mean - last.mean), np.asarray(covariance) - dense(last)
        return np.concatenate([off[0], off[1].ravel()])

    coarse, fine = error(200), error(400)
    assert np.abs(fine).max() < 0.05
    # halved, up to the second order's share of about 1 / 200
    np.testing.assert_allclose(np.linalg.norm(coarse) / np.linalg.norm(fine), 2, rtol=0.05)


def test_it_is_jitted_mapped_and_traced_once(key):
    start, end = ends(2)
    start, end = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (start, end))

    @jax.jit
    @chex.assert_max_traces(1)
    def run(end, eps):
        law = jax.vmap(guide.gaussian_schrodinger(start, end, eps).marginal)(jnp.linspace(0, 1, 3))
        return law.mean, jax.vmap(lambda c: c.dense(2))(law.covariance)

    for eps in (0.5, 1.0):
        moved = core.gaussian(end.mean + eps, end.covariance)
        means, covariances = run(moved, jnp.float32(eps))
        np.testing.assert_allclose(means[-1], moved.mean, atol=1e-5)
        np.testing.assert_allclose(covariances[-1], dense(end), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("d", "eps", "rows", "said"),
    [
        (2, 0.0, None, "eps must be positive"),
        (3, 1.0, None, "of one length"),
        (2, 1.0, 3, "matrix must have shape"),
    ],
)
def test_bad_input_is_refused(d, eps, rows, said):
    start, end = (core.gaussian(jnp.zeros(n), core.Diagonal(1.0)) for n in (2, d))
    matrix = None if rows is None else jnp.eye(rows)
    with pytest.raises(ValueError, match=said):
        guide.gaussian_schrodinger(start, end, eps, matrix)
