"""Implicit laws against linear samplers, singular values, and a banana."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian_targets import banana, normal

from jaxinf import target, vi


def linear(params, z):
    return params["w"] @ z + params["b"]


def parabola(params, z):
    """An affine map and a product of the first latent number with itself."""
    return params["w"] @ z + params["b"] + params["c"] * (z[0] ** 2 - 1)


def bent(params, z):
    return params["out"] @ jnp.tanh(params["into"] @ z)


def weights(shape, seed=0):
    w = np.random.default_rng(seed).normal(size=shape)
    return {"w": jnp.asarray(w), "b": jnp.zeros(shape[0])}


@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (3, 3)])
def test_a_linear_samplers_entropy(x64, key, shape):
    """Exact at every draw, and the bound by one singular value is below it."""
    params = weights(shape)
    law = vi.implicit(linear, params, shape[1], shape[0], 0.1)
    w = np.asarray(params["w"])
    inner = 2 * np.pi * np.e * (w @ w.T + 0.01 * np.eye(shape[0]))
    wanted = np.linalg.slogdet(inner)[1] / 2
    z = jax.random.normal(key, (shape[1],))
    np.testing.assert_allclose(law.entropy(z), wanted, atol=1e-12)
    np.testing.assert_allclose(law.sample_and_log_prob(key)[1], -wanted, atol=1e-12)
    np.testing.assert_allclose(vi.linearised_entropy(params["w"], 0.1), wanted, atol=1e-12)
    k = min(shape)
    smallest = np.linalg.svd(w, compute_uv=False)[-1]
    bound = (
        shape[0] * np.log(2 * np.pi * np.e) / 2
        + k * np.log(smallest**2 + 0.01) / 2
        + (shape[0] - k) * np.log(0.1)
    )
    np.testing.assert_allclose(law.entropy_bound(z), bound, atol=1e-10)
    assert bound < wanted
    cheap = vi.implicit(linear, params, shape[1], shape[0], 0.1, iterations=k)
    np.testing.assert_allclose(cheap.sample_and_log_prob(key)[1], -bound, atol=1e-10)


def test_the_bound_is_the_entropy_where_singular_values_are_one(x64, key):
    """A repeated singular value ends the Krylov space early, which is left by chance."""
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 4)))[0]
    params = {"w": jnp.asarray(1.7 * basis), "b": jnp.zeros(6)}
    law = vi.implicit(linear, params, 4, 6, 0.3)
    z = jnp.ones(4)
    np.testing.assert_allclose(law.entropy_bound(z), law.entropy(z), atol=1e-12)
    values = jnp.array([2.0, 2.0, 2.0, 0.5])
    law = vi.implicit(linear, {"w": params["w"] @ jnp.diag(values), "b": jnp.zeros(6)}, 4, 6, 0.3)
    found = (2 * (law.entropy_bound(z) - 2 * np.log(0.3) - 3 * np.log(2 * np.pi * np.e))) / 4
    np.testing.assert_allclose(found, np.log((1.7 * 0.5) ** 2 + 0.09), atol=1e-12)


def test_the_bounds_derivative_is_the_singular_values(x64):
    """By the parameters, against differences of NumPy's singular values."""
    rng = np.random.default_rng(4)
    params = {
        "into": jnp.asarray(rng.normal(size=(5, 3))),
        "out": jnp.asarray(rng.normal(size=(4, 5))),
    }
    z = jnp.asarray(rng.normal(size=3))

    def found(params):
        return vi.implicit(bent, params, 3, 4, 0.1).entropy_bound(z)

    def wanted(params):
        jac = np.asarray(jax.jacfwd(lambda z: bent(params, z))(z))
        s = np.linalg.svd(jac, compute_uv=False)[-1]
        return 1.5 * np.log(s**2 + 0.01) + np.log(0.1) + 2 * np.log(2 * np.pi * np.e)

    np.testing.assert_allclose(found(params), wanted(params), atol=1e-11)
    grads = jax.grad(found)(params)
    for name, at in (("into", (1, 2)), ("out", (3, 0))):
        up, down = (wanted({**params, name: params[name].at[at].add(h)}) for h in (1e-6, -1e-6))
        # of second order: 1e-12 times a third derivative, and rounding over the step
        np.testing.assert_allclose(grads[name][at], (up - down) / 2e-6, rtol=1e-6, atol=1e-7)


def test_a_correlated_gaussian_is_recovered(x64, key):
    """A linear sampler's bound is that of the Gaussian it is; at the optimum KL is next to 0."""
    precision = np.array([[2.0, 1.2, 0.0], [1.2, 1.5, 0.3], [0.0, 0.3, 0.8]])
    mean = np.array([1.0, -2.0, 0.5])
    posterior = normal(mean, precision, 0.7)
    params = {"w": jnp.eye(3), "b": jnp.zeros(3)}
    law = vi.implicit(linear, params, 3, 3, 0.05)
    falling = optax.adam(optax.exponential_decay(0.05, 800, 0.01))
    run = vi.approximate(key, posterior, law, objective=vi.elbo(32), steps=1500, optimizer=falling)
    fitted = run.params
    w, b = np.asarray(fitted.params["w"]), np.asarray(fitted.params["b"])
    covariance = w @ w.T + 0.05**2 * np.eye(3)
    product = covariance @ precision
    off = b - mean
    kl = 0.5 * (np.trace(product) - 3 - np.linalg.slogdet(product)[1] + off @ precision @ off)
    assert kl < 1e-3
    assert fitted.sigma == law.sigma
    evidence = 0.7 + 1.5 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] / 2
    # the quadratic terms' variance is 3 / 2 a draw
    assert abs(run.info.bound[-200:].mean() - evidence) < 4 * np.sqrt(1.5 / 32 / 200) + 1e-3


def test_a_banana_is_nearer_than_by_a_gaussian(key):
    """log Z = 0: the bound is below it, within 0.05, and above that of the best Gaussian."""
    posterior = target.density(banana, jnp.zeros(2), 0.7)
    params = {"w": jnp.eye(2), "b": jnp.zeros(2), "c": jnp.zeros(2)}
    falling = optax.adam(optax.exponential_decay(0.03, 500, 0.1))
    law = vi.implicit(parabola, params, 2, 2, 0.05)
    runs = {
        "implicit": vi.approximate(key, posterior, law, optimizer=falling, steps=1000),
        "gaussian": vi.approximate(key, posterior, vi.full_rank(2), optimizer=falling, steps=1000),
    }
    found = {}
    for name, run in runs.items():
        assert run.info.skipped.sum() == 0
        draws = jax.vmap(vi.pair(posterior, run.params).draw)(jax.random.split(key, 20_000))
        log_w = np.asarray(draws.log_p - draws.log_q)
        found[name] = log_w.mean(), log_w.std() / np.sqrt(20_000)
    bound, error = found["implicit"]
    assert bound < 4 * error
    assert bound > -0.05
    assert bound - found["gaussian"][0] > 0.1


def test_sigma_is_learnt_where_asked(key):
    posterior = normal(jnp.zeros(1), 4 * jnp.eye(1))
    params = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
    law = vi.implicit(linear, params, 1, 1, 1.5, learn_sigma=True)
    falling = optax.adam(optax.exponential_decay(0.05, 200, 0.3))
    run = vi.approximate(key, posterior, law, steps=800, optimizer=falling)
    w = float(run.params.params["w"][0, 0])
    np.testing.assert_allclose(w**2 + float(run.params.sigma) ** 2, 0.25, rtol=0.03)


def test_compiled_once_and_in_batches(key):
    posterior = target.density(banana, jnp.zeros(2), 0.3)

    def loss(params, sigma, key):
        law = vi.implicit(bent, params, 3, 2, sigma, iterations=2)
        return vi.elbo(4)(key, vi.pair(posterior, law))[0]

    once = jax.jit(chex.assert_max_traces(loss, n=1))
    params = [
        {"into": 1.0 * jnp.arange(12.0).reshape(4, 3) / n, "out": jnp.ones((2, 4)) * jnp.eye(2, 4)}
        for n in (5, 7)
    ]
    alone = [once(p, s, key) for p, s in zip(params, (0.3, 0.5), strict=True)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *params)
    together = jax.vmap(loss, (0, 0, None))(stacked, jnp.array([0.3, 0.5]), key)
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-4)


def test_what_is_wrong_is_said(key):
    params = weights((4, 2))
    with pytest.raises(ValueError, match="sigma must be positive"):
        vi.implicit(linear, params, 2, 4, 0.0)
    with pytest.raises(ValueError, match="latent must be"):
        vi.implicit(linear, params, 0, 4, 0.1)
    with pytest.raises(ValueError, match="iterations must be"):
        vi.implicit(linear, params, 2, 4, 0.1, iterations=0)
    with pytest.raises(ValueError, match="vector of 2 numbers to one of 3"):
        vi.implicit(linear, params, 2, 3, 0.1)
    law = vi.implicit(linear, params, 2, 4, 0.1)
    posterior = normal(jnp.zeros(4), jnp.eye(4))
    with pytest.raises(TypeError, match="no density"):
        vi.elbo(2, sticking=True)(key, vi.pair(posterior, law))
