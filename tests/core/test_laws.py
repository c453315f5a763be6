"""Exact laws against NumPyro's, against each other, and against sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from jaxinf import core

MATRIX = np.array([[1.0, 0.6, 0.2], [0.6, 1.5, -0.3], [0.2, -0.3, 0.7]])
MEAN = np.array([0.5, -1.0, 2.0])
X = np.array([0.3, -0.2, 1.5])


def laws():
    factors = jnp.linalg.cholesky(jnp.stack([jnp.asarray(MATRIX), 0.3 * MATRIX + jnp.eye(3)]))
    means = jnp.stack([MEAN, -MEAN])
    weights = jnp.array([0.3, 0.7])
    full = core.Mixture(jnp.log(weights), core.Gaussian(means, core.Dense(factors)))
    components = dist.MultivariateNormal(means, scale_tril=factors)
    scales = jnp.array([[0.4, 0.5, 0.6], [1.0, 1.5, 2.0]])
    return {
        "dense": (
            core.gaussian(jnp.asarray(MEAN), core.dense(jnp.asarray(MATRIX))),
            dist.MultivariateNormal(jnp.asarray(MEAN), jnp.asarray(MATRIX)),
        ),
        "diagonal": (
            core.gaussian(jnp.asarray(MEAN), core.Diagonal(scales[0])),
            dist.Normal(MEAN, scales[0]).to_event(1),
        ),
        "isotropic": (
            core.gaussian(jnp.asarray(MEAN), core.Diagonal(0.7)),
            dist.Normal(MEAN, 0.7).to_event(1),
        ),
        "mixture": (
            core.mixture(weights, means, scales),
            dist.MixtureSameFamily(
                dist.Categorical(weights), dist.Normal(means, scales).to_event(1)
            ),
        ),
        "full_mixture": (
            full,
            dist.MixtureSameFamily(dist.Categorical(weights), components),
        ),
    }


NAMES = ["dense", "diagonal", "isotropic", "mixture", "full_mixture"]


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_is_numpyros(name, x64):
    """Densities agree with NumPyro's to rounding."""
    ours, theirs = laws()[name]
    np.testing.assert_allclose(ours.log_prob(jnp.asarray(X)), theirs.log_prob(X), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_moments(name, x64):
    """Mean and second moments of draws are NumPyro's law's, |z| < 4."""
    ours, theirs = laws()[name]
    n = 20_000
    x = jax.vmap(ours.sample)(jax.random.split(jax.random.key(0), n))
    with jax.numpy_rank_promotion("allow"):
        y = theirs.sample(jax.random.key(1), (n,))
    for f in (lambda a: a, lambda a: (a[:, :, None] * a[:, None, :]).reshape(n, -1)):
        error = jnp.sqrt((f(x).var(0) + f(y).var(0)) / n)
        assert float(jnp.max(jnp.abs((f(x).mean(0) - f(y).mean(0)) / error))) < 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("coloured", [False, True])
def test_posterior_mean_is_tweedies(name, coloured, x64):
    """E[x | alpha x + e = y] = (y + C grad log p(y)) / alpha, with p the noised law."""
    law, _ = laws()[name]
    alpha, c = 0.6, 0.8**2 * (MATRIX if coloured else jnp.eye(3))
    noise = core.dense(jnp.asarray(c)) if coloured else core.Diagonal(0.8)
    slope = jax.grad(lambda y: law.noised(alpha, noise).log_prob(y))(jnp.asarray(X))
    np.testing.assert_allclose(
        law.posterior_mean(jnp.asarray(X), alpha, noise), (X + c @ slope) / alpha, rtol=1e-10
    )


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2)])
@pytest.mark.parametrize("kind", ["dense", "full", "diagonal"])
def test_covariance_operators(kind, shape, x64):
    """sqrt, whiten, precision, matvec and the determinant are those of the dense matrix."""
    size = int(np.prod(shape))
    if kind != "diagonal":
        cov = (core.dense if kind == "dense" else core.full)(jnp.asarray(MATRIX))
        c = jnp.kron(MATRIX, jnp.eye(size // 3))
    else:
        cov = core.Diagonal(0.5 if size != 3 else jnp.array([0.5, 1.0, 2.0]))
        c = jnp.diag(jnp.broadcast_to(jnp.square(cov.scale), (size,)))
    x = jax.random.normal(jax.random.key(0), shape)
    root = jax.jacobian(lambda z: cov.sqrt(z.reshape(shape)).ravel())(x.ravel())
    np.testing.assert_allclose(root @ root.T, c, atol=1e-12)
    np.testing.assert_allclose(cov.sqrt_transpose(x).ravel(), root.T @ x.ravel(), atol=1e-12)
    np.testing.assert_allclose(cov.sqrt(cov.whiten(x)), x, atol=1e-12)
    np.testing.assert_allclose(cov.precision(x).ravel(), jnp.linalg.solve(c, x.ravel()), atol=1e-12)
    np.testing.assert_allclose(cov.matvec(x).ravel(), c @ x.ravel(), atol=1e-12)
    np.testing.assert_allclose(cov.dense(size), c, atol=1e-12)
    np.testing.assert_allclose(
        2 * cov.log_det_sqrt(size), jnp.linalg.slogdet(c)[1], rtol=1e-12, atol=1e-12
    )
    turned = cov.scaled(-3.0)
    np.testing.assert_allclose(turned.matvec(x), 9 * cov.matvec(x), atol=1e-12)
    grown = cov.log_det_sqrt(size) + size * np.log(3)
    np.testing.assert_allclose(turned.log_det_sqrt(size), grown, rtol=1e-12)


def test_weights_need_not_be_normalised(x64):
    """A mixture is that of its weights' proportions, however it is made."""
    means, scales = jnp.stack([MEAN, -MEAN]), jnp.array([0.4, 1.5])
    law = core.mixture(jnp.array([0.3, 0.7]), means, scales)
    scaled = core.mixture(jnp.array([0.9, 2.1]), means, scales)
    np.testing.assert_allclose(scaled.log_weights, jnp.log(jnp.array([0.3, 0.7])), rtol=1e-12)
    shifted = core.Mixture(law.log_weights + 2, law.components)
    np.testing.assert_allclose(
        shifted.log_prob(jnp.asarray(X)), law.log_prob(jnp.asarray(X)), rtol=1e-12
    )


def test_bad_covariances_and_weights():
    """Matrices that are no covariances and weights that are not positive say so."""
    with pytest.raises(ValueError, match="symmetric"):
        core.dense(jnp.array([[1.0, 0.5], [0.4999, 1.0]]))
    for make in (core.dense, core.full):
        with pytest.raises(ValueError, match=r"positive definite.*jitter"):
            make(jnp.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="multiple of 3"):
        core.dense(jnp.asarray(MATRIX)).sqrt(jnp.zeros(4))
    with pytest.raises(ValueError, match="positive"):
        core.mixture(jnp.array([0.5, 0.0]), jnp.zeros((2, 1)), jnp.ones(2))
