"""Starting early from the Gaussian nearest to the noisy data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, process, sampler, score
from jaxinf.sampler.gaussian_start import gaussian_start, moments

VP = process.gaussian(process.cosine())
HALF = 0.5  # alpha^2 = sigma^2 = 1/2 on the cosine schedule


def test_gaussian_data_are_reached_from_halfway(x64):
    """N(1, 0.25) at alpha^2 = 1/2: W2 = 0 from the nearest Gaussian, 0.4664 from N(0, 1).

    From N(0, 1) it comes to N(0.5528, 0.6325^2).

    Heun's steps are of second order, so 4/3 of the difference between 200 and 400 is removed; what
    is left is of third order or less, (1/400)^3 times constants below 100.
    """
    data = core.gaussian(jnp.array([1.0]), core.Diagonal(0.5))
    denoiser, stepper = score.oracle(VP, data), sampler.heun(VP)
    start = gaussian_start(VP, HALF, *moments(data))
    np.testing.assert_allclose(start.mean, [np.sqrt(0.5)], rtol=1e-12)
    np.testing.assert_allclose(start.covariance.scale**2, 0.125 + 0.5, rtol=1e-12)

    def ends(steps):
        plan = sampler.plan(VP, np.linspace(HALF, 0, steps + 1))
        x = jnp.array([[0.0], [1.0]])
        return sampler.sample(jax.random.key(0), stepper, denoiser, plan, x).x[:, 0]

    coarse, fine = ends(200), ends(400)
    origin, unit = fine + (fine - coarse) / 3
    slope = unit - origin

    def distance(mean, scale):
        return float(jnp.hypot(origin + slope * mean - 1.0, slope * scale - 0.5))

    assert distance(start.mean[0], start.covariance.scale) < 100 / 400**3
    np.testing.assert_allclose([origin, slope], [0.5528, 0.6325], atol=5e-5)
    np.testing.assert_allclose(distance(0.0, 1.0), 0.4664, atol=5e-5)


def test_it_is_the_nearest_gaussian(x64):
    """KL(q_t || N) on a mixture, by quadrature: below N(0, I) at each time, and at its least."""
    law = core.mixture(jnp.array([0.3, 0.7]), jnp.array([[-1.0], [2.0]]), jnp.array([0.3, 0.5]))
    grid = jnp.linspace(-12, 12, 4001)[:, None]

    @jax.jit
    def divergence(t, gaussian):
        log_q = jax.vmap(VP.marginal(law, t).log_prob)(grid)
        log_n = jax.vmap(gaussian.log_prob)(grid)
        return jnp.sum(jnp.exp(log_q) * (log_q - log_n)) * 24 / 4000

    prior = core.gaussian(jnp.zeros(1), core.Diagonal(1.0))
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        best = gaussian_start(VP, t, *moments(law))
        least = float(divergence(t, best))
        assert 0 <= least < float(divergence(t, prior))
        slope = jax.grad(lambda best, t=t: divergence(t, best))(best)
        for leaf in jax.tree.leaves(slope):
            np.testing.assert_allclose(leaf, 0, atol=1e-9)


def test_moments_of_a_law(x64):
    """A mixture's mean and covariance, by the sum over components; a Gaussian's own."""
    w = np.array([0.2, 0.5, 0.3])
    means = np.array([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0]])
    scales = np.array([[0.2, 0.1], [0.3, 0.4], [0.5, 0.2]])
    law = core.mixture(*map(jnp.asarray, (w, means, scales)))
    mean, covariance = moments(law)
    m = w @ means
    matrix = np.diag(w @ scales**2) + (w[:, None] * (means - m)).T @ (means - m)
    np.testing.assert_allclose(mean, m, rtol=1e-12)
    np.testing.assert_allclose(covariance.dense(2), matrix, rtol=1e-12)
    _, isotropic = moments(law, isotropic=True)
    np.testing.assert_allclose(isotropic.scale**2, np.trace(matrix) / 2, rtol=1e-12)
    full = core.dense(jnp.array([[2.0, 0.5], [0.5, 1.0]]))
    gaussian = core.gaussian(jnp.array([1.0, 2.0]), full)
    assert moments(gaussian)[1] is full
    np.testing.assert_allclose(moments(gaussian, isotropic=True)[1].scale ** 2, 1.5, rtol=1e-12)


@pytest.mark.parametrize(("n", "shape"), [(50, (2, 3)), (4, (2, 3)), (1, (5,))])
def test_moments_of_examples(n, shape, x64):
    """The empirical law's, also of fewer examples than numbers; a start is definite."""
    x = jax.random.normal(jax.random.key(1), (n, *shape)).at[:, 0].set(0.5)
    mean, covariance = moments(x)
    assert mean.shape == shape
    flat = np.asarray(x).reshape(n, -1)
    wanted = np.cov(flat.T, bias=True) if n > 1 else np.zeros((flat.shape[1],) * 2)
    np.testing.assert_allclose(covariance.dense(flat.shape[1]), wanted, atol=1e-13)
    start = gaussian_start(VP, HALF, mean, covariance)
    np.testing.assert_allclose(
        start.covariance.dense(flat.shape[1]), (wanted + np.eye(len(wanted))) / 2, atol=1e-13
    )
    np.testing.assert_allclose(start.mean, np.sqrt(0.5) * mean, rtol=1e-12)
    chosen = jax.vmap(start.sample)(jax.random.split(jax.random.key(0), 3))
    assert chosen.shape == (3, *shape)
    assert bool(jnp.all(jnp.isfinite(chosen)))


def test_isotropic_is_the_nearest_isotropic(x64):
    """Among N(m, v I) the divergence is least at v = alpha^2 trace(Cov) / d + sigma^2."""
    law = core.gaussian(jnp.array([1.0, -1.0]), core.Diagonal(jnp.array([0.3, 1.5])))
    start = gaussian_start(VP, HALF, *moments(law, isotropic=True))
    true = VP.marginal(law, HALF).covariance.scale ** 2

    def divergence(scale):
        return 0.5 * jnp.sum(true / scale**2 - 1 + jnp.log(scale**2 / true))

    np.testing.assert_allclose(jax.grad(divergence)(start.covariance.scale), 0, atol=1e-12)
    assert jnp.shape(start.covariance.scale) == ()


def test_it_traces():
    """Under jit in the time and the moments; correlated noise is added as it is."""
    matrix = jnp.array([[1.0, 0.3], [0.3, 1.0]])
    coloured = process.gaussian(process.cosine(), core.dense(matrix))
    mean, covariance = jnp.array([1.0, 2.0]), core.Diagonal(0.5)
    start = jax.jit(lambda t: gaussian_start(coloured, t, mean, covariance))(HALF)
    np.testing.assert_allclose(start.covariance.dense(2), 0.125 * np.eye(2) + matrix / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_start(VP, 0.0, jnp.zeros(2), core.Diagonal(1.0)), "at 0"),
        (lambda: gaussian_start(VP, 1.5, jnp.zeros(2), core.Diagonal(1.0)), r"\(0, t_max=1\]"),
        (
            lambda: gaussian_start(VP, 0.5, jnp.zeros(2), core.Diagonal(jnp.ones(3))),
            r"moments\(data\)",
        ),
        (
            lambda: gaussian_start(VP, 0.5, jnp.zeros(2), core.dense(jnp.eye(3))),
            "does not fit a mean",
        ),
        (lambda: moments(jnp.zeros((0, 3))), "at least one example"),
    ],
)
def test_bad_input(call, message):
    """Each mistake is named with its mend."""
    with pytest.raises(ValueError, match=message):
        call()
