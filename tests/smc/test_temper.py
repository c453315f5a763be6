"""Tempering against evidences in closed form, of targets that are not symmetric."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxinf import core, mcmc, smc, target
from jaxinf.run.mesh import make_mesh
from jaxinf.smc import levels

RUNS = 24
SHIFTS = np.array([1.5, -0.4])
NOISE = 0.3


def shifted(y, x):
    """Normal errors about a position and its first number's triple."""
    means = jnp.stack([x[0], 3 * x[0] + x[1]])
    return jnp.sum(jax.scipy.stats.norm.logpdf(y, means, NOISE))


def gaussian(y=SHIFTS):
    prior = core.gaussian(jnp.array([0.0, -1.0]), core.Diagonal(jnp.array([1.0, 2.0])))
    return target.density(shifted, jnp.zeros(2), jnp.asarray(y, jnp.float32), prior=prior)


def gaussian_evidence(y=SHIFTS):
    a = np.array([[1.0, 0.0], [3.0, 1.0]])
    covariance = a @ np.diag([1.0, 4.0]) @ a.T + NOISE**2 * np.eye(2)
    return stats.multivariate_normal(a @ [0.0, -1.0], covariance).logpdf(y)


COUNTS = np.array([3, 0, 1, 4, 2, 1])


@core.record
class LogGamma:
    """The logarithm of a gamma variable of shape 2."""

    def sample(self, key):
        return jnp.log(jax.random.gamma(key, 2.0))

    def log_prob(self, x):
        return 2 * x - jnp.exp(x)


def poisson():
    def seen(y, x):
        return jnp.sum(y * x - jnp.exp(x) - jax.scipy.special.gammaln(y + 1.0))

    return target.density(seen, jnp.zeros(()), jnp.asarray(COUNTS, jnp.float32), prior=LogGamma())


def poisson_evidence():
    shape, n = 2 + COUNTS.sum(), len(COUNTS)
    return special.gammaln(shape) - shape * np.log(1 + n) - special.gammaln(COUNTS + 1.0).sum()


def bumps(_, x):
    near = jnp.log(0.8) + jax.scipy.stats.norm.logpdf(x, -1.0, 0.2)
    far = jnp.log(0.2) + jax.scipy.stats.norm.logpdf(x, 2.5, 0.5)
    return jnp.sum(jnp.logaddexp(near, far) + 1.7 - jax.scipy.stats.norm.logpdf(x, 0.0, 2.0))


def mixture():
    return target.density(
        bumps, jnp.zeros(1), prior=core.gaussian(jnp.zeros(1), core.Diagonal(2.0))
    )


def funnel():
    """A normalised density whose second number's scale follows the first, times e^0.6."""

    def seen(_, x):
        v, rest = x[0], x[1]
        log_density = jax.scipy.stats.norm.logpdf(v, 0.5, 1.0) + jax.scipy.stats.norm.logpdf(
            rest, 1.0, jnp.exp(1.5 * v)
        )
        return log_density + 0.6 - jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.0, 3.0))

    return target.density(
        seen, jnp.zeros(2), prior=core.gaussian(jnp.zeros(2), core.Diagonal(3.0 * jnp.ones(2)))
    )


CASES = {
    "gaussian_hmc": (gaussian, gaussian_evidence(), {}),
    "gaussian_waste_free": (
        gaussian,
        gaussian_evidence(),
        {"waste_free": True, "moves": 9, "kernel": mcmc.mala()},
    ),
    "funnel_transport": (funnel, 0.6, {"learn": smc.triangular()}),
    "poisson_mala": (poisson, poisson_evidence(), {"kernel": mcmc.mala()}),
    "mixture_random_walk": (mixture, 1.7, {"kernel": mcmc.random_walk(), "learn": mcmc.diagonal()}),
}


@pytest.mark.parametrize("name", CASES)
def test_evidence_adaptive_and_along_its_schedule(name):
    """The frozen pass is unbiased for Z; the adaptive one close by, and both say their error."""
    make, truth, options = CASES[name]
    posterior = make()
    first = smc.temper(jax.random.key(0), posterior, particles=400, **options)
    assert first.finished
    keep = {k: v for k, v in options.items() if k == "waste_free"}

    def many(run, seed):
        runs = [run(key) for key in jax.random.split(jax.random.key(seed), RUNS)]
        assert all(run.finished for run in runs)
        found = [(run.log_evidence, run.standard_error) for run in runs]
        return np.asarray(found, np.float64).T

    schedule = first.schedule
    frozen, said = many(lambda key: smc.anneal(key, posterior, schedule, particles=400, **keep), 1)
    z = np.exp(frozen - truth)
    assert abs((z.mean() - 1) / (z.std() / np.sqrt(RUNS))) < 4
    # the root mean square of RUNS numbers is known within 1 / sqrt(2 RUNS): 10 %, |z| < 4
    assert 0.5 < np.sqrt(np.mean(said**2)) / frozen.std() < 2
    free, said = many(lambda key: smc.temper(key, posterior, particles=400, **options), 2)
    error = free.std() / np.sqrt(RUNS)
    bias = 5 * free.var()  # Jensen's half a variance, and adaptation's of the same order
    assert abs(free.mean() - truth) < 4 * error + bias
    assert 0.5 < np.sqrt(np.mean(said**2)) / free.std() < 2


def test_particles_are_the_posterior():
    run = smc.temper(jax.random.key(3), gaussian(), particles=4000)
    a = np.array([[1.0, 0.0], [3.0, 1.0]])
    precision = np.diag([1.0, 0.25]) + a.T @ a / NOISE**2
    wanted = np.linalg.solve(precision, [0, -0.25] + a.T @ SHIFTS / NOISE**2)
    scale = np.sqrt(np.diag(np.linalg.inv(precision)))
    # moves leave at least a quarter of the particles' worth
    assert np.abs((run.population.mean() - wanted) / scale).max() < 4 / np.sqrt(1000)
    assert np.all(np.diff(run.schedule.temperatures[: int(run.schedule.levels)]) > 0)
    np.testing.assert_allclose(run.ess[: int(run.schedule.levels) - 1], 0.9, atol=0.01)


def test_other_data_recompile_nothing():
    smc.temper(jax.random.key(0), gaussian(), particles=100)
    count = levels.run_levels._cache_size()
    other = smc.temper(
        jax.random.key(1), gaussian([0.1, 3.0]), particles=100, kernel=mcmc.hmc(5, 0.2), jitter=0.1
    )
    assert levels.run_levels._cache_size() == count
    assert abs(other.log_evidence - gaussian_evidence([0.1, 3.0])) < 1


def test_a_given_schedule_is_run():
    rising = jnp.linspace(0, 1, 13)[1:] ** 3
    plan = smc.schedule(mcmc.random_walk(0.3), rising, moves=4)
    run = smc.anneal(jax.random.key(0), gaussian(), plan, particles=2000)
    assert run.finished
    np.testing.assert_allclose(run.schedule.temperatures, rising)
    assert abs(run.log_evidence - gaussian_evidence()) < 4 * run.standard_error


def test_the_next_temperature_leaves_the_share(x64):
    values = jnp.log(jax.random.gamma(jax.random.key(0), 0.3, (500,)))
    weights = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (500,)))
    at = float(smc.next_temperature(values, weights, jnp.asarray(0.2), 0.7))
    w, more = np.exp(weights), np.exp((at - 0.2) * np.asarray(values))
    np.testing.assert_allclose((w @ more) ** 2 / (w @ more**2), 0.7, rtol=1e-4)
    assert at > 0.2
    assert smc.next_temperature(1e-3 * values, weights, jnp.asarray(0.2), 0.7) == 1


def test_what_did_not_end_is_said():
    run = smc.temper(jax.random.key(0), gaussian(), particles=100, max_levels=2)
    assert not run.finished
    assert jnp.isnan(run.log_evidence)
    nowhere = dataclasses.replace(gaussian(), log_density=lambda _, x: -jnp.inf)
    run = smc.temper(jax.random.key(0), nowhere, particles=100)
    assert not run.finished
    assert not run.population.alive
    assert run.log_evidence == -jnp.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 1}, "at least 2"),
        ({"moves": 0}, "moves must be"),
        ({"effective": 1.0}, "between 0 and 1"),
        ({"waste_free": True, "particles": 101, "moves": 4}, "multiple of moves"),
        ({"max_levels": 0}, "max_levels"),
        ({"target": target.density(shifted, jnp.zeros(2), jnp.zeros(2))}, "no prior to draw"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        smc.temper(jax.random.key(0), **{"target": gaussian(), **options})
    with pytest.raises(ValueError, match="rise from above 0"):
        smc.schedule(mcmc.mala(), jnp.array([0.5, 0.2, 1.0]))


def test_alike_under_vmap_and_on_a_mesh():
    """A batch of runs, and a run over eight devices, are the single runs."""

    def run(key):
        return smc.temper(key, gaussian(), particles=64, moves=1, kernel=mcmc.random_walk())

    keys = jax.random.split(jax.random.key(7), 3)
    alone = [run(key) for key in keys]
    together = jax.jit(jax.vmap(run))(keys)
    for i, one in enumerate(alone):
        np.testing.assert_allclose(together.log_evidence[i], one.log_evidence, atol=1e-3)
        np.testing.assert_array_equal(together.schedule.levels[i], one.schedule.levels)
    with jax.set_mesh(make_mesh("data=8")):
        spread = run(keys[0])
    assert spread.population.particles.sharding.spec == jax.P("data")
    np.testing.assert_allclose(spread.log_evidence, alone[0].log_evidence, atol=1e-3)
