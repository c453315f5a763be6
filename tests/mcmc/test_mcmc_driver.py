"""Whole runs: moments, warm-up, compilation, meshes, and NumPyro's own answer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, mcmc, target
from jaxinf.mcmc import driver
from jaxinf.mcmc.adaptation import windows
from jaxinf.run.mesh import make_mesh

SCALES = np.array([1e-2, 1.0, 1e3])


def scaled(mean, x):
    return -jnp.sum(jnp.square((x - mean) / SCALES)) / 2


def make(mean=0.0):
    return target.density(scaled, jnp.zeros(3), mean * jnp.ones(3))


@pytest.fixture(scope="module")
def run():
    return mcmc.sample(jax.random.key(0), mcmc.nuts(), make(), warmup=400, draws=300)


def test_scales_are_found(run):
    chex.assert_shape(run.draws, (4, 300, 3))
    chex.assert_shape(run.info.acceptance, (4, 300))
    # Nearly independent draws: at least a quarter as good as independent ones.
    error = 4 * np.sqrt(4 / 1200)
    z = np.asarray(run.draws).reshape(-1, 3) / SCALES
    assert np.abs(z.mean(0)).max() < error
    assert np.abs((z**2).mean(0) - 1).max() < np.sqrt(2) * error
    assert not run.info.diverged.any()
    found = np.linalg.norm(run.kernel.metric.factor, axis=1) / SCALES
    # Variances from at least 200 draws of four chains.
    np.testing.assert_allclose(found, 1, atol=0.25)
    assert abs(run.info.acceptance.mean() - 0.8) < 0.12
    assert (run.warmup_gradients > 0).all()


def test_other_data_and_kernels_recompile_nothing(run):
    count = driver._sample._cache_size()
    other = mcmc.sample(jax.random.key(1), mcmc.nuts(0.1), make(5.0), warmup=400, draws=300)
    assert driver._sample._cache_size() == count
    z = np.asarray(other.draws)[..., 1]
    assert abs(z.mean() - 5) < 4 * np.sqrt(4 / 1200)


def test_a_run_repeats_to_the_last_bit(run):
    again = mcmc.sample(jax.random.key(0), mcmc.nuts(), make(), warmup=400, draws=300)
    chex.assert_trees_all_equal(again, run)


def test_chains_lie_over_the_mesh(run):
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    with jax.set_mesh(mesh):
        spread = mcmc.sample(jax.random.key(0), mcmc.random_walk(), make(), warmup=0, draws=20)
    alone = mcmc.sample(jax.random.key(0), mcmc.random_walk(), make(), warmup=0, draws=20)
    np.testing.assert_allclose(spread.draws, alone.draws, rtol=1e-5, atol=1e-6)
    assert len({shard.index[0].start for shard in spread.state.z.addressable_shards}) == 4


def test_many_data_sets_at_once():
    means = jnp.array([0.0, 3.0, -2.0])
    key = jax.random.key(2)

    def one(mean):
        return mcmc.sample(key, mcmc.hmc(4), make(mean), chains=2, warmup=150, draws=400).draws

    draws = np.asarray(jax.vmap(one)(means))[..., 1]
    np.testing.assert_allclose(draws.mean((1, 2)), means, atol=4 * np.sqrt(8 / 800))


@pytest.mark.parametrize("warmup", [0, 1, 20, 150, 1000])
def test_windows_end_before_the_last_steps(warmup):
    marks = windows(warmup)
    assert len(marks) == warmup
    ends = np.flatnonzero(marks == 2)
    if warmup >= 150:
        assert ends[-1] == warmup - min(50, warmup // 10) - 1
        first = min(10, warmup // 20)
        assert marks[:first].max() == 0
        lengths = np.diff(np.concatenate([[first - 1], ends]))
        assert lengths[0] == 15
        assert (lengths[1:] >= lengths[:-1]).all()


@pytest.mark.parametrize("metric", [mcmc.diagonal(), mcmc.dense()])
def test_moments_in_parts_are_those_of_all(metric, key, x64):
    z = jax.random.normal(key, (6, 5, 3)) * jnp.array([[[1.0, 10.0, 0.1]]]) + 3
    moments = metric.none(z[0, 0])
    for part in z:
        moments = metric.add(moments, part)
    whole = np.cov(np.asarray(z).reshape(-1, 3).T)
    share = 30 / 35
    expected = share * whole + 1e-3 * (1 - share) * np.eye(3)
    factor = jax.vmap(metric.covariance(moments).sqrt_transpose)(jnp.eye(3))
    found = np.asarray(factor @ factor.T)
    if isinstance(metric, type(mcmc.diagonal())):
        found, expected = np.diag(found), np.diag(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_given_metric_is_where_warm_up_starts(key):
    given = core.dense(jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0]]))
    np.testing.assert_allclose(mcmc.dense().start(given, jnp.zeros(3)).factor, given.factor)
    found = mcmc.diagonal().start(given, jnp.zeros(3)).scale
    np.testing.assert_allclose(found**2, [2.0, 1.0, 3.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 0}, "chains must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"start": jnp.zeros((4, 2))}, r"start must have shape \(4, 3\)"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        mcmc.sample(jax.random.key(0), mcmc.nuts(), make(), **options)
