"""Triangular maps against the ones that made the particles, and targets in their coordinates."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, smc, target


def made():
    """A map whose second number's scale ranges over orders."""
    return smc.Transport(
        offset=jnp.array([0.3, -2.0, 1.0]),
        matrix=jnp.array([[0, 0, 0], [0.7, 0, 0], [-0.4, 1.5, 0]]),
        log_scale=jnp.array([0.5, -1.0, 0.2]),
        slopes=jnp.array([[0, 0, 0], [1.2, 0, 0], [-0.3, 0.5, 0]]),
    )


def test_a_map_is_found_again(x64):
    n = 20_000
    white = jax.random.normal(jax.random.key(0), (n, 3))
    z = jax.vmap(made().forward)(white)[0]
    found, u = smc.fit_transport(z)
    # a log square of a normal number has variance pi^2 / 2, half of its regression a quarter of it
    error = np.pi / np.sqrt(8 * n)
    chex.assert_trees_all_close(found.slopes, made().slopes, atol=4 * error)
    chex.assert_trees_all_close(found.log_scale, made().log_scale, atol=4 * error)
    apart = (found.matrix - made().matrix) / np.exp(made().log_scale)[:, None]
    assert np.abs(apart).max() < 4 / np.sqrt(n)  # weights only sharpen it
    chex.assert_trees_all_close(jax.vmap(found.inverse)(z), u, atol=1e-9)
    np.testing.assert_allclose(jnp.mean(jnp.square(u), axis=0), 1, atol=1e-9)


def test_a_gaussian_has_its_cholesky_factor(x64):
    n = 20_000
    factor = jnp.array([[2.0, 0, 0], [-1.0, 0.1, 0], [0.5, 0.3, 40.0]])
    z = jax.random.normal(jax.random.key(1), (n, 3)) @ factor.T
    found, _ = smc.fit_transport(z)
    root = found.matrix + jnp.diag(jnp.exp(found.log_scale))
    scale = np.linalg.norm(factor, axis=1)
    assert np.abs((root - factor) / scale[:, None]).max() < 4 / np.sqrt(n)


def test_weights_count_as_repetitions(x64):
    z = jax.vmap(made().forward)(jax.random.normal(jax.random.key(2), (50, 3)))[0]
    times = np.arange(50) % 3
    many = smc.fit_transport(jnp.repeat(z, times, axis=0, total_repeat_length=times.sum()))[0]
    few = smc.fit_transport(z, jnp.asarray(times, jnp.float64))[0]
    chex.assert_trees_all_close(many, few, rtol=1e-6, atol=1e-8)


def test_a_mapped_target_is_the_same_measure(x64):
    def likelihood(y, x):
        return jnp.sum(jnp.sin(x) * y)

    prior = core.gaussian(jnp.ones(3), core.Diagonal(jnp.array([1.0, 2.0, 3.0])))
    plain = target.density(likelihood, jnp.zeros(3), jnp.arange(3.0), prior=prior)
    moved = target.mapped(plain, made())
    u = jnp.array([0.3, -0.8, 1.1])
    z, log_det = made().forward(u)
    jacobian = jax.jacobian(lambda u: made().forward(u)[0])(u)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-12)
    np.testing.assert_allclose(moved.log_prob(u), plain.log_prob(z) + log_det, rtol=1e-12)
    np.testing.assert_allclose(moved.log_prior(u) + moved.log_likelihood(u), moved.log_prob(u))
    np.testing.assert_allclose(made().inverse(z), u, rtol=1e-12)
    chex.assert_trees_all_close(moved.constrain(u), plain.constrain(z))
    chex.assert_trees_all_close(moved.unconstrain(plain.constrain(z)), u)
    key = jax.random.key(3)
    there = made().forward(moved.sample_prior(key))[0]
    chex.assert_trees_all_close(there, plain.sample_prior(key))
    assert (moved.dim, moved.names) == (plain.dim, plain.names)


def test_what_is_no_map_is_said():
    plain = target.density(lambda _, x: -jnp.sum(x**2), jnp.zeros(3))
    with pytest.raises(TypeError, match="needs forward"):
        target.mapped(plain, jnp.eye(3))
    with pytest.raises(ValueError, match="take more than 4"):
        smc.fit_transport(jnp.zeros((4, 3)))
