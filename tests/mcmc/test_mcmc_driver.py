"""Whole runs: moments, warm-up, compilation, meshes, and NumPyro's own answer."""

import arviz
import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from jaxinf import core, diagnostics, mcmc, target
from jaxinf.mcmc import adaptation, driver
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


def test_dual_averaging_by_hand():
    """Algorithm 5 of Hoffman and Gelman with gamma 0.05, t_0 10, kappa 0.75 and mu = log 10 eps."""
    steps = adaptation.steps_from(jnp.asarray(0.3))
    error, mean = 0.0, 0.0
    for t, acceptance in enumerate([0.2, 0.9, 0.7, 1.0, 0.1], 1):
        steps = adaptation.averaged(steps, jnp.asarray(acceptance), 0.8)
        error = (1 - 1 / (t + 10)) * error + (0.8 - acceptance) / (t + 10)
        log_step = np.log(10 * 0.3) - np.sqrt(t) / 0.05 * error
        mean = t**-0.75 * log_step + (1 - t**-0.75) * mean
        np.testing.assert_allclose(steps.log_step, log_step, rtol=1e-5)
        np.testing.assert_allclose(steps.mean, mean, rtol=1e-5)


@pytest.mark.parametrize(("edge", "start", "found"), [(1.5, 0.1, 1.6), (0.05, 1.0, 0.03125)])
def test_the_first_step_is_where_acceptance_crosses_a_half(edge, start, found):
    """By doublings from below, by halvings from above, and not for ever."""

    def acceptance(kernel):
        return jnp.where(kernel.step_size < edge, 0.9, 0.1)

    kernel = mcmc.random_walk(start)
    np.testing.assert_allclose(
        adaptation.first_step(kernel, acceptance).step_size, found, rtol=1e-5
    )
    endless = adaptation.first_step(kernel, lambda kernel: jnp.ones(()))
    np.testing.assert_allclose(endless.step_size, start * 2.0**50, rtol=1e-4)


def test_windows_of_a_thousand_steps():
    marks = windows(1000)
    np.testing.assert_array_equal(np.flatnonzero(marks == 2), [24, 54, 949])
    np.testing.assert_array_equal(np.flatnonzero(marks == 3), [114, 234])
    assert np.flatnonzero(windows(1000)).tolist() == list(range(10, 950))


def test_starts_are_the_first_that_are_finite(key):
    """Uniform on [-2, 2], and where density and gradient are both finite."""
    flat = target.density(lambda _, x: 0 * x.sum(), jnp.zeros(1))
    index = jnp.arange(400)
    z = np.asarray(jax.vmap(lambda i: driver._start(key, flat, i))(index)).ravel()
    assert stats.kstest((z + 2) / 4, "uniform").pvalue > 1e-3

    # Below -1 the value is infinite, from there to 0 the slope is not a number.
    def half(_, x):
        return jnp.where(x[0] > -1, jnp.sqrt(jnp.maximum(x[0], 0)), -jnp.inf)

    cut = target.density(half, jnp.zeros(1))
    z = np.asarray(jax.vmap(lambda i: driver._start(key, cut, i))(index)).ravel()
    assert (z > 0).all()
    assert stats.kstest(z / 2, "uniform").pvalue > 1e-3


def test_a_chain_without_a_start_is_told():
    """An error outside of a trace, a flag within."""
    nowhere = target.density(lambda edge, x: jnp.log(x - edge).sum(), jnp.zeros(2), 2.0)
    options = {"chains": 2, "warmup": 0, "draws": 3}
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"chains \[0, 1\] did not start.*Pass start="):
        mcmc.sample(key, mcmc.nuts(), nowhere, **options)
    start = jnp.array([[3.0, 3.0], [3.0, 1.0]])
    with pytest.raises(ValueError, match=r"chains \[1\] did not start.*at the start"):
        mcmc.sample(key, mcmc.nuts(), nowhere, start=start, **options)
    run = jax.jit(lambda key: mcmc.sample(key, mcmc.nuts(), nowhere, start=start, **options))(key)
    np.testing.assert_array_equal(run.started, [True, False])
    np.testing.assert_array_equal(run.draws[1], jnp.broadcast_to(start[1], (3, 2)))
    assert mcmc.sample(key, mcmc.nuts(), nowhere, start=start + 2, **options).started.all()


def test_chains_differ_and_gradients_are_summed():
    """A walk of one leapfrog step a transition counts its gradients; keys are the chains' own."""
    start = jnp.zeros((4, 3))
    one = mcmc.sample(jax.random.key(0), mcmc.hmc(3), make(), warmup=40, draws=2, start=start)
    np.testing.assert_array_equal(one.warmup_gradients, 40 * 3)
    assert len(np.unique(np.asarray(one.draws)[:, 0, 0])) == 4


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    scale = numpyro.sample("scale", dist.HalfNormal(2))
    with numpyro.plate("rows", 3):
        numpyro.sample("row", dist.Normal(mu, scale))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def test_arviz_reads_what_chains_found():
    posterior = target.program(model, np.array([0.3, -0.4]))
    run = mcmc.sample(jax.random.key(0), mcmc.nuts(), posterior, warmup=100, draws=50)
    tree = mcmc.to_arviz(run, posterior)
    found = tree["posterior"]
    assert set(found.data_vars) == {"mu", "scale", "row"}
    assert found["row"].shape == (4, 50, 3)
    np.testing.assert_allclose(found["scale"], np.exp(run.draws[..., 4]), rtol=1e-6)
    assert posterior.names[4] == "scale"
    sizes = {k: v for k, v in found.sizes.items() if k in ("chain", "draw")}
    assert sizes == {"chain": 4, "draw": 50}
    of_steps = tree["sample_stats"]
    np.testing.assert_array_equal(of_steps["diverging"], run.info.diverged)
    np.testing.assert_array_equal(of_steps["acceptance_rate"], run.info.acceptance)
    np.testing.assert_array_equal(of_steps["energy"], run.info.energy)
    np.testing.assert_array_equal(of_steps["n_steps"], run.info.gradients)
    table = arviz.summary(tree, round_to="none")
    assert list(table.index) == ["mu", "row[0]", "row[1]", "row[2]", "scale"]
    np.testing.assert_allclose(table["mean"]["mu"], np.asarray(found["mu"]).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        table["ess_bulk"]["mu"], diagnostics.ess_bulk(run.draws)[0], rtol=1e-3
    )


def test_arviz_names_the_leaves_of_functions(run):
    assert set(mcmc.to_arviz(run, make())["posterior"].data_vars) == {"x"}
    nested = target.density(
        lambda _, x: 0.0 * x["a"]["b"], {"a": {"b": jnp.zeros(())}, "c": jnp.zeros(2)}
    )
    assert set(mcmc.to_arviz(run, nested)["posterior"].data_vars) == {"a.b", "c"}
    with pytest.raises(ValueError, match=r"shape \(chains, draws, 2\)"):
        mcmc.to_arviz(run, target.density(scaled, jnp.zeros(2)))


@pytest.mark.parametrize("warmup", [0, 1, 20, 150, 1000])
def test_windows_end_before_the_last_steps(warmup):
    marks = windows(warmup)
    assert len(marks) == warmup
    ends = np.flatnonzero(marks >= 2)
    assert not np.any(marks[warmup // 2 :] == 3)
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
