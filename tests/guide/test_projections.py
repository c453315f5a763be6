"""Learnt projections: their losses are stationary at the exact Markovian projection alone."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinf import core, guide
from jaxinf.guide.projection import learner

EPS, M0, S0, M1, S1 = 0.7, -0.5, 1.0, 1.5, 2.0
"""Ends N(M0, S0^2) and N(M1, S1^2), independent: their bridges are no Markov process."""
ADAM = optax.adam(1e-2)
COUNT = 200_000


def laws():
    return tuple(
        core.gaussian(jnp.full(1, m), core.Diagonal(jnp.full(1, s)))
        for m, s in ((M0, S0), (M1, S1))
    )


def pairs(key):
    return jax.vmap(guide.Independent(*laws()).sample)(jax.random.split(key, COUNT))


def guess(t, x):
    """E[x_1 | x_t = x] and its variance, where ends are independent."""
    variance = (1 - t) ** 2 * S0**2 + t**2 * S1**2 + EPS * t * (1 - t)
    gain = t * S1**2 / variance
    return M1 + gain * (x - (1 - t) * M0 - t * M1), S1**2 * (1 - t * gain)


@dataclass(frozen=True)
class Exact:
    """The exact drift, and what is learnt beside it: multiples of simple functions."""

    off: float = 0.0

    def init(self, key, x):
        return jnp.zeros(4)

    def apply(self, params, x, t, cond=None):
        t = t / 5 + 0.5
        drift = (guess(t, x)[0] - x) / (1 - t)
        more = params @ jnp.array([1.0, t, x[0], t * x[0]])
        return (1 + self.off) * drift + more[None]


@dataclass(frozen=True)
class Generator:
    """The exact law of the end given the state, less the state: (x, z) to two numbers."""

    off: float = 0.0

    def init(self, key, x):
        return jnp.zeros(2)

    def apply(self, params, x, t, cond=None):
        mean, variance = guess(t / 5 + 0.5, x[0])
        ahead = mean + (1 + self.off) * jnp.sqrt(variance) * x[1] - x[0] + params[0]
        return jnp.array([ahead, 0.0])


@dataclass(frozen=True)
class Quadratic:
    """A discriminator: multiples of y, y^2, x y and t y."""

    def init(self, key, x):
        return jnp.zeros(4)

    def apply(self, params, x, t, cond=None):
        y, x = x
        return jnp.array([params @ jnp.array([y, y**2, x * y, t * y]), 0.0])


def scores(key, slope):
    """Standardised means of a loss's derivatives over independent examples."""
    found = jax.jit(jax.vmap(slope))(jax.random.split(key, COUNT), *pairs(jax.random.key(9)))
    found = np.concatenate([np.reshape(a, (COUNT, -1)) for a in jax.tree.leaves(found)], axis=1)
    return found.mean(axis=0) / (found.std(axis=0) / np.sqrt(COUNT))


def drift_scores(key, off):
    projection = guide.drift_projection(Exact(off), ADAM, eps=EPS, margin=0.05)
    loss = jax.grad(projection.loss)
    return scores(key, lambda key, x, y: loss(jnp.zeros(4), key, x, y))


def regression_scores(key, off):
    projection = guide.regression_projection(Exact(off), ADAM, eps=EPS)
    times = np.arange(4) / 4
    log_scale = np.log(guess(times, 0.0)[1] / (EPS * (1 - times)))[:, None] / 2
    params = jnp.zeros(4), jnp.asarray(log_scale, jnp.float32)
    loss = jax.grad(projection.loss)
    return scores(key, lambda key, x, y: loss(params, key, x, y))


def adversarial_scores(key, off):
    networks = Generator(off), Quadratic()
    projection = guide.adversarial_projection(*networks, ADAM, eps=EPS)
    loss = jax.grad(projection.judge)
    return scores(key, lambda key, x, y: loss(jnp.zeros(4), jnp.zeros(2), key, x, y))


@pytest.mark.parametrize("found", [drift_scores, regression_scores, adversarial_scores])
def test_the_loss_is_stationary_at_the_exact_projection(key, found):
    """Of independent ends, within 4 standard errors; and not where it is 5 % off."""
    assert np.abs(found(key, 0.0)).max() < 4
    assert np.abs(found(key, 0.05)).max() > 4


def test_the_games_losses(x64, key):
    """At a discriminator that says nothing, and one that is linear in y: the paper's terms."""
    projection = guide.adversarial_projection(Generator(), Quadratic(), ADAM, penalty=0.3, eps=EPS)
    none, x, end = jnp.zeros(2), jnp.array([0.4]), jnp.array([-1.0])
    found = projection.judge(jnp.zeros(4), none, key, x, end)
    np.testing.assert_allclose(found, 2 * np.log(2), atol=1e-12)
    linear = jnp.array([0.8, 0.0, 0.0, 0.0])
    k, at, real = projection._reciprocal(jax.random.split(key)[0], x, end)
    fake = projection.step(none, jax.random.split(key)[1], k, at)
    wanted = jax.nn.softplus(-0.8 * real[0]) + jax.nn.softplus(0.8 * fake[0]) + 0.15 * 0.8**2
    np.testing.assert_allclose(projection.judge(linear, none, key, x, end), wanted, atol=1e-12)
    wanted = jax.nn.softplus(-0.8 * fake[0])
    np.testing.assert_allclose(projection.fool(none, linear, key, x, end), wanted, atol=1e-12)


def test_a_step_is_the_bridge_to_the_guess(x64, key):
    """The adversarial and the regression step from 1/4 to 1/2, from the same latent draw."""
    first, second = jax.random.split(key)
    x, z = jnp.array([0.4]), jax.random.normal(first, (1,))
    mean, variance = guess(0.25, 0.4)
    end = mean + jnp.sqrt(variance) * z
    wanted = guide.brownian_bridge(second, x, end, 0.25, 0.5, EPS)
    game = guide.adversarial_projection(Generator(), Quadratic(), ADAM, eps=EPS)
    found = game.step(jnp.zeros(2), key, jnp.array(1), x)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    scales = jnp.full((4, 1), np.log(variance / (EPS * 0.75)) / 2)
    few = guide.regression_projection(Exact(), ADAM, eps=EPS)
    found = few.step((jnp.zeros(4), scales), key, jnp.array(1), x)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_a_game_is_played_to_the_exact_spread():
    """One fit of independent ends: the generator's spread and shift are found from far off."""

    @dataclass(frozen=True)
    class Shifted:
        def init(self, key, x):
            return jnp.array([0.8, 0.5])

        def apply(self, params, x, t, cond=None):
            mean, variance = guess(t / 5 + 0.5, x[0])
            ahead = mean + params[0] + jnp.exp(params[1]) * jnp.sqrt(variance) * x[1] - x[0]
            return jnp.array([ahead, 0.0])

    fall = optax.adam(optax.exponential_decay(0.03, 400, 0.2), b1=0.5, b2=0.9)
    projection = guide.adversarial_projection(
        Shifted(), Quadratic(), fall, eps=EPS, budget=guide.budget(1, 5120, 20, 128)
    )
    start, end = laws()
    coupling = guide.Reversed(guide.Independent(end, start))

    @jax.jit
    @jax.vmap
    def run(key):
        state = projection.init(key, jnp.zeros(1))
        state, info = projection.fit(key, state, coupling)
        return projection.learnt(state), info.skipped

    found, skipped = run(jax.random.split(jax.random.key(2), 4))
    assert not skipped.any()
    found = np.asarray(found)
    error = found.std(axis=0, ddof=1) / 2
    assert (error < 0.05).all()
    assert (np.abs(found.mean(axis=0)) <= 7.5 * error).all(), found  # as with four in a normal law


def test_a_step_that_is_not_finite_changes_nothing(key):
    @dataclass(frozen=True)
    class Broken:
        def init(self, key, x):
            return jnp.ones(1)

        def apply(self, params, x, t, cond=None):
            return params * jnp.where(x > 0.5, jnp.nan, x)

    projection = guide.drift_projection(Broken(), ADAM, budget=guide.budget(2, 8, 3, 1))
    state, info = projection.fit(key, learner(jnp.ones(1), ADAM), guide.Independent(*laws()))
    assert 0 < info.skipped < 48
    assert np.isfinite(info.loss)
    assert state.count == 48 - info.skipped
    assert np.isfinite(projection.learnt(state)).all()


def test_other_numbers_compile_nothing_anew(key):
    """Laws and eps are leaves, under vmap too."""
    start, end = laws()

    @jax.jit
    @chex.assert_max_traces(1)
    def run(keys, end, eps):
        one = guide.drift_projection(
            Exact(), ADAM, steps=3, eps=eps, budget=guide.budget(1, 8, 1, 4)
        )
        fit = jax.vmap(lambda key: guide.markovian_fitting(key, start, end, one, rounds=2))
        return fit(keys).rounds.forward

    keys = jax.random.split(key, 3)
    first, second = (
        run(keys, core.gaussian(end.mean, end.covariance.scaled(by)), by) for by in (1.0, 0.5)
    )
    assert first.shape == (3, 2, 4)
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: guide.gaussian_projection(0), "at least 1 times between its ends, got 0"),
        (lambda: guide.drift_projection(Exact(), ADAM, eps=-1.0), "eps must be positive"),
        (lambda: guide.adversarial_projection(Exact(), Exact(), ADAM, latent=0), "latent"),
        (lambda: guide.budget(pool=10, batch=3), "the batch divide the pool"),
    ],
)
def test_bad_numbers_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_bad_ends_are_refused(key):
    start, end = laws()
    two = core.gaussian(jnp.zeros(2), core.Diagonal(1.0))
    exact = guide.gaussian_projection(1)
    with pytest.raises(ValueError, match="of one length"):
        guide.markovian_fitting(key, start, two, exact)
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        guide.markovian_fitting(key, start, end, exact, rounds=0)
    mixed = core.mixture(jnp.ones(2), jnp.zeros((2, 1)), jnp.ones(2))
    with pytest.raises(TypeError, match="Gaussian couplings"):
        guide.markovian_fitting(key, start, end, exact, coupling=mixed)
