"""Gaussian gradients against moments in closed form, rank-one precisions against dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, target, vi

D = np.array([0.7, 1.3, 2.0, 0.4])
U = np.array([0.5, -1.1, 0.3, 0.8])
MEAN = np.array([0.2, -0.4, 1.0, 0.1])


def family(direction=U):
    return vi.rank_one(4, mean=MEAN, precision=D, direction=direction)


def quartic(x):
    return x[0] ** 4


def z_score(found, wanted):
    """Largest distance of the means from what is wanted, in standard errors."""
    found = np.asarray(found, np.float64)
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    return np.max(np.abs(found.mean(axis=0) - wanted) / error)


def test_bonnet_and_price_of_a_fourth_power(key):
    """E x^4 = m^4 + 6 m^2 v + 3 v^2, at mean 1 and variance 2."""
    law = core.gaussian(jnp.ones(1), core.Diagonal(jnp.full(1, 2**0.5)))
    keys = jax.random.split(key, 100_000)
    found = jax.jit(jax.vmap(lambda key: vi.gaussian_gradients(key, quartic, law)))(keys)
    assert found.covariance.shape == (100_000, 1)
    assert z_score(found.value, 25.0) < 4
    assert z_score(found.mean[:, 0], 28.0) < 4
    assert z_score(found.covariance[:, 0], 18.0) < 4

    def pathwise(m, v, key):
        return quartic(m + jnp.sqrt(v) * jax.random.normal(key, (1,)))

    slope = jax.jit(jax.vmap(jax.grad(pathwise, (0, 1)), (None, None, 0)))
    m, v = slope(jnp.ones(1), jnp.full(1, 2.0), keys)
    assert z_score(m[:, 0], 28.0) < 4
    assert z_score(v[:, 0], 18.0) < 4


def test_gradients_in_a_full_covariance(key, x64):
    a = jnp.array([0.3, -0.5, 0.8])
    mean = jnp.array([1.0, 0.2, -0.4])
    matrix = jnp.array([[1.0, 0.3, 0.0], [0.3, 0.5, -0.2], [0.0, -0.2, 0.8]])
    law = core.gaussian(mean, core.dense(matrix))

    def moment(mean, matrix):
        m, v = a @ mean, a @ matrix @ a
        return m**4 + 6 * m**2 * v + 3 * v**2

    keys = jax.random.split(key, 20_000)
    found = jax.vmap(lambda key: vi.gaussian_gradients(key, lambda x: (a @ x) ** 4, law))(keys)
    slopes = jax.grad(moment, (0, 1))(mean, matrix)
    assert z_score(found.mean, slopes[0]) < 4
    assert z_score(found.covariance, slopes[1]) < 4
    square = vi.gaussian_gradients(key, lambda x: x @ matrix @ x, law, draws=3)
    np.testing.assert_allclose(square.covariance, matrix, atol=1e-12)  # at every draw
    drawn = vi.gaussian_gradients(key, lambda x: x[1], law, draws=50_000)
    assert abs(drawn.value - 0.2) < 4 * np.sqrt(0.5 / 50_000)


@pytest.mark.parametrize("direction", [U, 0 * U, 1e-9 * U, 50 * U], ids=["u", "0", "tiny", "large"])
def test_a_rank_one_precision_is_its_dense_gaussian(direction, key, x64):
    law = family(direction)
    covariance = np.linalg.inv(np.diag(D) + np.outer(direction, direction))
    covariance = (covariance + covariance.T) / 2
    dense = core.gaussian(jnp.asarray(MEAN), core.dense(jnp.asarray(covariance)))
    x = jax.random.normal(key, (5, 4))
    np.testing.assert_allclose(jax.vmap(law.log_prob)(x), jax.vmap(dense.log_prob)(x), rtol=1e-9)
    root = jax.vmap(law.root)(jnp.eye(4)).T
    np.testing.assert_allclose(root @ root.T, covariance, atol=1e-11)
    np.testing.assert_allclose(law.log_det, np.linalg.slogdet(covariance)[1], atol=1e-10)
    wanted = (np.trace(covariance) + MEAN @ MEAN - 4 - np.linalg.slogdet(covariance)[1]) / 2
    np.testing.assert_allclose(law.standard_divergence(), wanted, atol=1e-10)
    slopes = jax.grad(lambda law: jnp.sum(law.sample(key)) + law.standard_divergence())(law)
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(slopes))


def test_draws_of_a_rank_one_precision(key):
    law = family()
    x, log_prob = jax.vmap(law.sample_and_log_prob)(jax.random.split(key, 20_000))
    np.testing.assert_allclose(log_prob, jax.vmap(law.log_prob)(x), rtol=1e-5)
    assert z_score(x, MEAN) < 4
    off = np.asarray(x, np.float64) - MEAN
    covariance = np.linalg.inv(np.diag(D) + np.outer(U, U))
    assert z_score(off[:, :, None] * off[:, None, :], covariance) < 4


def test_rank_one_work_grows_with_the_dimension():
    """No array of a draw, its density or the divergence is larger than the vector."""
    law = vi.rank_one(1000)
    program = jax.make_jaxpr(lambda key: (law.sample_and_log_prob(key), law.standard_divergence()))
    sizes = [v.aval.size for e in program(jax.random.key(0)).eqns for v in e.outvars]
    assert max(sizes) == 1000


@pytest.mark.parametrize("kind", ["mean field", "full rank", "low rank"])
def test_divergences_from_a_standard_gaussian(kind, key, x64):
    import dataclasses

    laws = {
        "mean field": vi.mean_field(4, mean=MEAN, scale=D),
        "full rank": vi.full_rank(4, mean=MEAN, scale=D),
        "low rank": vi.low_rank(key, 4, 2, mean=MEAN, scale=D, width=0.7),
    }
    law = laws[kind]
    below = jax.random.normal(key, (4, 4))
    if kind == "full rank":
        law = dataclasses.replace(law, below=below)
    factor = np.diag(D) + (np.tril(below, -1) if kind == "full rank" else 0)
    covariance = factor @ factor.T
    if kind == "low rank":
        covariance = covariance + np.asarray(law.factors @ law.factors.T)
    wanted = (np.trace(covariance) + MEAN @ MEAN - 4 - np.linalg.slogdet(covariance)[1]) / 2
    np.testing.assert_allclose(law.standard_divergence(), wanted, atol=1e-10)


def gaussian(data, x):
    mean, precision = data
    return -(x - mean) @ precision @ (x - mean) / 2


def test_a_rank_one_family_reaches_its_own(key):
    precision = np.diag(D) + np.outer(U, U)
    posterior = target.density(gaussian, jnp.zeros(4), (jnp.asarray(MEAN), jnp.asarray(precision)))
    found = vi.approximate(
        key, posterior, vi.rank_one(4, direction=0.1), objective=vi.elbo(16, sticking=True),
        steps=1500,
    ).params  # fmt: skip
    fitted = jnp.diag(jnp.exp(found.log_precision)) + jnp.outer(found.direction, found.direction)
    np.testing.assert_allclose(fitted, precision, atol=0.05)
    np.testing.assert_allclose(found.mean, MEAN, atol=0.05)


def linear(params, z):
    return params["w"] @ z + params["b"], params["log_scale"]


def exactly(params, x):
    """The recognition model of a decoder whose columns share their last row alone."""
    w = params["w"] * jnp.exp(-params["log_scale"])[:, None]
    precision = 1 + jnp.square(jnp.diagonal(w[:-1]))
    off = (x - params["b"]) * jnp.exp(-params["log_scale"])
    mean = jnp.linalg.solve(jnp.diag(precision) + jnp.outer(w[-1], w[-1]), w.T @ off)
    return mean, jnp.log(precision), w[-1]


def without(params, x):
    """The same without the outer product."""
    mean, log_precision, _ = exactly(params, x)
    return mean, -log_precision / 2


def test_factor_analysis_is_its_bound_at_the_recognition_model(key, x64):
    """The latent precision is I + W^T Psi^-1 W, a diagonal and an outer product."""
    w = np.concatenate([np.diag([0.8, -1.2, 0.5]), np.array([[0.6, 0.9, -1.0]])])
    scale, b = np.array([0.5, 0.7, 0.6, 0.4]), np.array([0.1, 0.2, -0.3, 1.0])
    params = {"w": jnp.asarray(w), "b": jnp.asarray(b), "log_scale": jnp.log(scale)}
    x = jax.random.normal(key, (6, 4))
    marginal = core.gaussian(params["b"], core.dense(jnp.asarray(w @ w.T + np.diag(scale**2))))
    evidence = jax.vmap(marginal.log_prob)(x)
    model = vi.autoencoder(
        exactly, linear, params, params, 3, likelihood=vi.GaussianLikelihood(),
        posterior=vi.RankOne,
    )  # fmt: skip
    keys = jax.random.split(key, 6)
    found = jax.vmap(lambda key, x: vi.elbo()(key, model.pair(x))[1].bound)(keys, x)
    np.testing.assert_allclose(found, evidence, atol=1e-6)  # at every draw
    one = vi.autoencoder(without, linear, params, params, 3, likelihood=vi.GaussianLikelihood())
    precision = np.eye(3) + w.T @ np.diag(scale**-2.0) @ w
    apart = np.diag(precision) - (w[-1] / scale[-1]) ** 2
    # KL of N(m, diag(apart)^-1) from N(m, precision^-1)
    gap = np.sum(np.diag(precision) / apart) - 3 + np.sum(np.log(apart))
    gap = (gap - np.linalg.slogdet(precision)[1]) / 2
    short = jax.vmap(lambda key: vi.elbo()(key, one.pair(x[0]))[1].bound)(
        jax.random.split(key, 4000)
    )
    assert gap > 0.1
    assert z_score(short, evidence[0] - gap) < 4


def test_bad_input(key):
    with pytest.raises(ValueError, match="draws"):
        vi.gaussian_gradients(key, quartic, core.gaussian(jnp.ones(1), core.white()), draws=0)
    with pytest.raises(ValueError, match="precision"):
        vi.rank_one(3, precision=0.0)
    with pytest.raises(ValueError, match="dim"):
        vi.rank_one(0)
