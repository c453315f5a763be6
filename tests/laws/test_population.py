"""The law of what changes a population: the mean of w f stays, against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import smc

VALUES = np.array([[1.0, -0.3], [0.2, 2.0], [-4.0, 0.1], [3.0, 0.7]])
WEIGHTS = np.array([0.2, 3.0, 0.0, 0.9])
FACTORS = np.array([0.5, 2.0, 1.0, 0.0])
DRAWS = 20_000


def f(x):
    """Skewed functions of a particle."""
    return jnp.stack([x[0], x[0] ** 2 * x[1], jnp.exp(x[1]), x[0] > 0.5])


def weighted():
    return smc.population(jnp.asarray(VALUES)).weigh(jnp.log(WEIGHTS))


def unnormalised(people):
    """Z times the mean of f, and Z."""
    evidence = jnp.exp(people.log_evidence)
    return jnp.append(jnp.where(people.alive, evidence * people.mean(f), 0), evidence)


TRANSFORMERS = {
    "multinomial": lambda key, p: p.resample(key, smc.multinomial),
    "stratified": lambda key, p: p.resample(key, smc.stratified),
    "systematic": lambda key, p: p.resample(key, smc.systematic),
    "residual": lambda key, p: p.resample(key, smc.residual),
    "not_due": lambda key, p: p.resample(key, smc.systematic, 0.1),
    "twice": lambda key, p: p.resample(key, smc.systematic).resample(
        jax.random.fold_in(key, 1), smc.multinomial
    ),
    "drawn": lambda key, p: p.draw(key, smc.systematic, 7),
    "drawn_fewer": lambda key, p: p.draw(key, smc.multinomial, 3),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer_keeps_the_mean_of_w_f(name):
    """Also of w f times a further factor, as what follows a resampling sees it."""

    @jax.jit
    @jax.vmap
    def one(key):
        people = TRANSFORMERS[name](key, weighted())
        more = jnp.where(people.particles[:, 0] > 0.5, jnp.log(2.5), jnp.log(0.25))
        return jnp.concatenate([unnormalised(people), unnormalised(people.weigh(more))])

    found = np.asarray(one(jax.random.split(jax.random.key(1), DRAWS)), np.float64)
    values = np.asarray(jax.vmap(f)(VALUES), np.float64)
    more = WEIGHTS * np.where(VALUES[:, 0] > 0.5, 2.5, 0.25)
    exact = np.concatenate([np.append(w @ values, w.sum()) / 4 for w in (WEIGHTS, more)])
    error = np.maximum(found.std(0) / np.sqrt(DRAWS), 1e-6 * (1 + np.abs(exact)))
    assert np.abs((found.mean(0) - exact) / error).max() < 4


def test_multinomial_by_enumeration(x64):
    """All 4^4 ancestors with their probabilities, without any draw."""
    people = weighted()
    w = np.exp(np.asarray(people.normalise()))
    total = np.zeros(5)
    for row in itertools.product(range(4), repeat=4):
        chance = np.prod(w[list(row)])
        if chance == 0:
            continue
        ancestors = jnp.array(row)
        drawn = people.resample(jax.random.key(0), lambda key, lw, n=None, a=ancestors: a)
        total += chance * np.asarray(unnormalised(drawn.weigh(jnp.log(FACTORS)[ancestors])))
    both = WEIGHTS * FACTORS
    exact = np.append(both @ np.asarray(jax.vmap(f)(VALUES)), both.sum()) / 4
    np.testing.assert_allclose(total, exact, rtol=1e-12)
