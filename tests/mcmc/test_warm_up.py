"""Chains that are stuck where there is no mass are found, and only those."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import mcmc, target
from jaxinf.mcmc import warm_up
from jaxinf.mcmc.kernel import State

DIM = 6


def two_regions(params, x):
    """Gaussians far apart with given log masses and widths."""
    log_mass, width = params
    centres = jnp.array([[0.0], [100.0]])
    apart = jnp.sum(jnp.square((x[None] - centres) / width[:, None]), axis=1)
    return jax.nn.logsumexp(log_mass - apart / 2 - DIM * jnp.log(width))


def run(log_mass, width, learn, seed=0):
    params = jnp.array([0.0, log_mass]), jnp.array([1.0, width])
    start = jnp.repeat(jnp.array([[0.5], [99.0], [-0.5], [101.0]]), DIM, axis=1)
    return mcmc.sample(
        jax.random.key(seed), mcmc.nuts(), target.density(two_regions, jnp.zeros(DIM), params),
        start=start, warmup=400, draws=50, learn=learn,
    )  # fmt: skip


@pytest.mark.parametrize("learn", [mcmc.dense(), mcmc.diagonal()], ids=["dense", "diagonal"])
@pytest.mark.parametrize("width", [1.0, 0.1])
def test_chains_leave_a_region_without_mass(learn, width):
    found = run(-40.0, width, learn)
    np.testing.assert_array_equal(found.moved, [False, True, False, True])
    assert np.abs(found.draws).max() < 10
    root = jax.vmap(found.kernel.metric.sqrt)(jnp.eye(DIM))
    # the metric is that of the chains which are left
    np.testing.assert_allclose(np.linalg.norm(root, axis=0), 1, atol=0.35)


@pytest.mark.parametrize("learn", [mcmc.dense(), mcmc.diagonal()], ids=["dense", "diagonal"])
@pytest.mark.parametrize("width", [1.0, 10.0, 0.1])
def test_chains_stay_where_mass_is_equal_whatever_the_density(learn, width):
    """In six dimensions a tenth of the width is 14 nats of density."""
    found = run(0.0, width, learn)
    assert not found.moved.any()
    assert (np.abs(found.draws[1::2] - 100) < 80).all()


def test_masses_are_compared(key, x64):
    """Below the threshold a chain is stuck, above it is not; an infinite height always is."""
    learn = mcmc.dense()
    z = jax.random.normal(key, (3, 400, DIM))
    moments = jax.vmap(lambda z: learn.add(learn.none(z[0]), z))(z)
    limit = 10 + 2 * DIM**0.5
    stuck = warm_up.stuck(learn, moments, jnp.array([0.0, 1 - limit, -1 - limit]))
    np.testing.assert_array_equal(stuck, [False, False, True])
    stuck = warm_up.stuck(learn, moments, jnp.array([0.0, -jnp.inf, jnp.nan]))
    np.testing.assert_array_equal(stuck, [False, True, True])


def test_rescued_chains_go_on_from_the_others_in_turn():
    z = jnp.arange(5.0)[:, None]
    state = State(z, z[:, 0], z)
    found = warm_up.rescued(state, jnp.array([True, False, True, True, False]))
    np.testing.assert_array_equal(found.log_prob, [1, 1, 1, 4, 4])
    chex.assert_trees_all_equal(warm_up.rescued(state, jnp.zeros(5, bool)), state)


@pytest.mark.parametrize("learn", [mcmc.dense(), mcmc.diagonal()], ids=["dense", "diagonal"])
def test_pooled_moments_are_those_of_the_draws(learn, key, x64):
    z = jax.random.normal(key, (4, 30, DIM)) + jnp.arange(4.0)[:, None, None]
    each = jax.vmap(lambda z: learn.add(learn.none(z[0]), z))(z)
    keep = jnp.array([True, False, True, True])
    together = learn.add(learn.none(z[0, 0]), z[keep].reshape(-1, DIM))
    chex.assert_trees_all_close(learn.pooled(each, keep), together, rtol=1e-12)
