"""Nested sequential Monte Carlo against Kalman's evidence of a chain of chains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, markov, smc

SIZE, LENGTH, RUNS = 6, 4, 64
STAY, LEAN, NOISE, BLUR = 0.7, 0.5, 0.6, 0.3


def model():
    """Every part leans on itself a time ago and on its neighbour now."""
    lean = jnp.linalg.inv(jnp.eye(SIZE) - LEAN * jnp.eye(SIZE, k=-1))
    noise = core.dense(NOISE**2 * lean @ lean.T)
    return markov.state_space(
        core.gaussian(jnp.zeros(SIZE), core.Diagonal(1e-6 * jnp.ones(SIZE))),
        markov.linear_gaussian(STAY * lean, noise),
        markov.linear_gaussian(jnp.eye(SIZE), core.Diagonal(BLUR * jnp.ones(SIZE))),
    )


@core.record
class Parts:
    """One time, part by part; a particle is the state as far as it is drawn."""

    before: core.Leaf

    def init(self, key):
        return jnp.zeros(SIZE)

    def step(self, key, x, inputs):
        i, seen = inputs
        neighbour = jnp.where(i > 0, x[i - 1], 0.0)
        mean = STAY * self.before[i] + LEAN * neighbour
        value = mean + NOISE * jax.random.normal(key)
        return x.at[i].set(value), jax.scipy.stats.norm.logpdf(seen, value, BLUR)


def start(params, key):
    return jnp.zeros(SIZE)


def inside(params, x, seen):
    return Parts(x), (jnp.arange(SIZE), seen)


def test_evidence_is_unbiased_and_better_than_bootstraps():
    space = model()
    _, y = space.sample(jax.random.key(0), LENGTH + 1)
    hidden = jnp.arange(LENGTH + 1) > 0
    filtered = markov.filter(space, y, observed=hidden)
    truth = filtered.log_evidence[-1]
    keys = jax.random.split(jax.random.key(1), RUNS)
    nest = smc.nested(start, inside, particles=8)
    runs = jax.vmap(lambda key: smc.run(key, nest, y[1:], particles=32))(keys)
    ratio = np.exp(np.asarray(runs.log_evidence - truth, np.float64))
    assert abs(ratio.mean() - 1) / (ratio.std() / np.sqrt(RUNS)) < 4
    means = np.asarray(jax.vmap(lambda p: p.mean())(runs.population))
    wanted, spread = filtered.laws.mean[-1], means.std(axis=0) / np.sqrt(RUNS)
    # a ratio of estimates is off by the order of its variance
    assert np.all(np.abs(means.mean(axis=0) - wanted) < 4 * spread + means.var(axis=0))
    plain = jax.vmap(
        lambda key: smc.particle_filter(key, space, y, observed=hidden, particles=32 * 8)
    )(keys)
    assert np.var(runs.log_evidence) < np.var(plain.log_evidence) / 2


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="inner runs must be at least 2"):
        smc.nested(start, inside, particles=1)
