"""Resampling schemes: expected counts, what never happens, and Metropolis' bias in full."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import smc

WEIGHTS = np.array([0.0, 0.31, 0.02, 0.0, 0.17, 0.5, 0.0, 0.0])
SCHEMES = {
    "multinomial": smc.multinomial,
    "stratified": smc.stratified,
    "systematic": smc.systematic,
    "residual": smc.residual,
}
DRAWS = 20_000


def counts(scheme, weights, number=None, draws=DRAWS, seed=0):
    """How often each index is drawn, [draws, n]."""
    log_weights = jnp.log(jnp.asarray(weights)) + 3.0  # up to a constant

    @jax.jit
    @jax.vmap
    def one(key):
        return jnp.bincount(scheme(key, log_weights, number), length=len(weights))

    return np.asarray(one(jax.random.split(jax.random.key(seed), draws)), np.float64)


@pytest.mark.parametrize("number", [None, 21])
@pytest.mark.parametrize("name", SCHEMES)
def test_expected_counts_are_the_weights(name, number):
    found = counts(SCHEMES[name], WEIGHTS, number)
    n = number or len(WEIGHTS)
    assert np.all(found.sum(1) == n)
    assert np.all(found[:, WEIGHTS == 0] == 0)
    spread = found.std(0) / np.sqrt(DRAWS)
    z = (found.mean(0) - n * WEIGHTS) / np.where(spread > 0, spread, 1e-6)
    assert np.abs(z).max() < 4


def test_variances_are_those_of_theory():
    """Of one index's count: multinomial n W (1 - W), systematic f (1 - f), residual's between."""
    n = len(WEIGHTS)
    f = n * WEIGHTS % 1
    left = f.sum()
    wanted = {
        "multinomial": n * WEIGHTS * (1 - WEIGHTS),
        "systematic": f * (1 - f),
        "residual": f * (1 - f / left),
    }
    for name, variance in wanted.items():
        found = counts(SCHEMES[name], WEIGHTS, seed=1)
        squares = (found - n * WEIGHTS) ** 2
        spread = np.maximum(squares.std(0) / np.sqrt(DRAWS), 1e-6)
        assert np.abs((squares.mean(0) - variance) / spread).max() < 4, name
    strata = counts(smc.stratified, WEIGHTS, seed=1).var(0)
    assert np.all(strata <= wanted["multinomial"] + 0.02)


@pytest.mark.parametrize("name", SCHEMES)
def test_many_particles_in_float32_leave_the_dead_dead(name):
    n = 30_000
    weights = np.random.default_rng(0).exponential(size=n) ** 4
    weights[np.random.default_rng(1).random(n) < 0.5] = 0
    weights[-100:] = 0
    log_weights = jnp.log(jnp.asarray(weights, jnp.float32)) - 1000
    taken = np.asarray(jax.jit(SCHEMES[name])(jax.random.key(0), log_weights))
    assert np.all(weights[taken] > 0)
    if name == "systematic":
        expected = n * weights / weights.sum()
        apart = np.abs(np.bincount(taken, minlength=n) - expected)
        # rounded down or up, but for the float's spacing of a sum near 1: n eps = 0.002
        assert apart.max() < 1.02


def transitions(weights):
    """Metropolis' matrix over indices with uniform proposals."""
    n = len(weights)
    matrix = np.minimum(1, weights[None] / weights[:, None]) / n
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, 1 - matrix.sum(1))
    return matrix


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_metropolis_bias_is_the_matrix_and_below_its_bound(steps):
    weights = np.array([0.05, 0.4, 0.15, 0.3, 0.1])
    power = np.linalg.matrix_power(transitions(weights), steps)
    bias = np.abs(power - weights).sum(1) / 2
    bound = (1 - 1 / (len(weights) * weights.max())) ** steps
    assert np.all(bias <= bound)
    assert bias.max() > bound / 5, "the bound should tell something"
    log_weights = jnp.log(jnp.asarray(weights))
    keys = jax.random.split(jax.random.key(2), DRAWS)
    scheme = smc.metropolis(steps)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: scheme(key, log_weights)))(keys))
    for start in range(len(weights)):
        share = np.bincount(drawn[:, start], minlength=len(weights)) / DRAWS
        error = np.sqrt(power[start] * (1 - power[start]) / DRAWS)
        assert np.abs((share - power[start]) / np.maximum(error, 1e-9)).max() < 4


def test_metropolis_leaves_the_dead():
    log_weights = jnp.log(jnp.array([0.0, 1.0, 0.0, 2.0]))
    drawn = smc.metropolis(40)(jax.random.key(0), log_weights, 1000)
    assert not np.isin(np.asarray(drawn), [0, 2]).any()


def test_metropolis_without_steps_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        smc.metropolis(0)


def test_systematic_rounds_down_or_up(x64):
    log_weights = jnp.log(jnp.asarray(WEIGHTS[1:3].tolist() + WEIGHTS[4:6].tolist()))
    expected = 9 * np.exp(np.asarray(log_weights)) / np.exp(np.asarray(log_weights)).sum()
    for seed in range(20):
        drawn = smc.systematic(jax.random.key(seed), log_weights, 9)
        assert np.abs(np.bincount(drawn, minlength=4) - expected).max() < 1
