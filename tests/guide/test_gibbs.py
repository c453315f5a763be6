"""An image and its noise level in turn: the joint posterior is that of a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.tree_util import Partial

from jaxinf import core, guide, mcmc, process, sampler, score, target

PROCESS = process.gaussian(process.cosine(t_max=1 - 1e-5))
MATRIX = np.array([[1.0, 0.3], [0.2, -0.8], [0.5, 0.5], [-1.0, 0.4], [0.1, 1.2], [0.7, -0.6]])
MEAN, COVARIANCE = np.array([0.5, -0.2]), np.array([[1.0, 0.4], [0.4, 0.6]])
Y = np.array([1.1, 0.9, -0.2, -0.4, -1.0, 1.6])
PRIOR = -0.5, 0.7  # of the noise's logarithm


def noise_model(x, y):
    noise = numpyro.sample("noise", dist.LogNormal(*PRIOR))
    numpyro.sample("y", dist.Normal(jnp.asarray(MATRIX) @ x, noise).to_event(1), obs=y)


def given_example(y, x):
    return target.program(noise_model, x, y)


def image(oracle, y, key, values):
    likelihood = guide.linear(guide.projection(jnp.asarray(MATRIX)), y, values["noise"])
    posterior = guide.conditioned(oracle, likelihood, guide.mmps())
    keys = jax.random.split(key)
    start = PROCESS.prior().sample(keys[0], (1, 2))
    plan = sampler.plan(PROCESS, [1 - 1e-5, 0.5, 0.0])
    return sampler.sample(keys[1], sampler.moment_matched(PROCESS), posterior, plan, start).x[0]


def pieces(y=Y):
    law = core.gaussian(jnp.asarray(MEAN), core.dense(jnp.asarray(COVARIANCE)))
    oracle = score.oracle(PROCESS, law)
    return Partial(image, oracle, jnp.asarray(y)), Partial(given_example, jnp.asarray(y))


def on_a_grid():
    """Moments of (log noise, its square, x, x x^T) under the joint posterior."""
    z = np.linspace(-4, 3, 1401)
    log_weight, moments = [], []
    for value in z:
        s = MATRIX @ COVARIANCE @ MATRIX.T + np.exp(2 * value) * np.eye(len(Y))
        r = Y - MATRIX @ MEAN
        gain = np.linalg.solve(s, MATRIX @ COVARIANCE).T
        mean = MEAN + gain @ r
        square = COVARIANCE - gain @ MATRIX @ COVARIANCE + np.outer(mean, mean)
        moments.append([value, value**2, *mean, *square[np.triu_indices(2)]])
        log_z = -0.5 * (r @ np.linalg.solve(s, r) + np.linalg.slogdet(s)[1])
        log_weight.append(log_z - 0.5 * ((value - PRIOR[0]) / PRIOR[1]) ** 2)
    weight = np.exp(log_weight - np.max(log_weight))
    return weight @ np.array(moments) / weight.sum()


def test_the_joint_law_is_the_grid_s(x64, key):
    """Chains from the prior, 15 sweeps: the moments of the last are the exact ones."""
    chains = 8000
    keys = jax.random.split(key, (2, chains))
    z = PRIOR[0] + PRIOR[1] * jax.random.normal(keys[0, 0], (chains, 1))
    draw, given = pieces()
    run = jax.jit(
        jax.vmap(
            lambda key, z: guide.gibbs(
                key, draw, given, mcmc.random_walk(0.7), jnp.zeros(2), z, sweeps=15, moves=5
            )
        )
    )(keys[1], z)
    x, z = np.asarray(run.x[:, -1]), np.asarray(run.z[:, -1, 0])
    upper = np.triu_indices(2)
    square = (x[:, :, None] * x[:, None])[:, *upper]
    found = np.concatenate([z[:, None], z[:, None] ** 2, x, square], axis=1)
    scores = (found.mean(axis=0) - on_a_grid()) / (found.std(axis=0, ddof=1) / np.sqrt(chains))
    assert np.all(np.abs(scores) < 4), scores
    assert run.info.acceptance.shape == (chains, 15, 5)


def test_other_observations_do_not_compile_anew(x64, key):
    traces = []

    def counted(oracle, y, key, values):
        traces.append("trace")
        return image(oracle, y, key, values)

    for y in (Y, Y + 0.1):
        draw, given = pieces(y)
        draw = Partial(counted, *draw.args)
        found = guide.gibbs(
            key, draw, given, mcmc.random_walk(0.5), jnp.zeros(2), jnp.zeros(1), sweeps=2, moves=1
        )
        assert found.x.shape == (2, 2)
        assert bool(jnp.all(jnp.isfinite(found.z)))
        traces.append("run")
    assert traces[-2:] == ["run", "run"]


def test_bad_input(key):
    with pytest.raises(ValueError, match="sweeps must be at least 1"):
        guide.gibbs(key, image, given_example, mcmc.hmc(), jnp.zeros(2), jnp.zeros(1), sweeps=0)
    with pytest.raises(ValueError, match="moves must be at least 1"):
        guide.gibbs(key, image, given_example, mcmc.hmc(), jnp.zeros(2), jnp.zeros(1), moves=0)
