"""The discriminative Kalman filter is Kalman's where its regression is exact."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import core, markov


def linear(params, y):
    return params[0] @ y


def constant(params, y):
    return params[1]


def model():
    """A stationary process and its exact regression of the state on what is seen."""
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(0.9 * np.linalg.qr(rng.normal(size=(3, 3)))[0])
    spread = jnp.asarray(np.diag([1.0, 0.5, 2.0]) + 0.2)
    noise = spread - matrix @ spread @ matrix.T + 0.0
    noise = (noise + noise.T) / 2
    lift = jnp.max(jnp.linalg.eigvalsh(-noise))
    matrix = matrix * jnp.where(lift > 0, 0.5, 1.0)
    noise = spread - matrix @ spread @ matrix.T
    view = jnp.asarray(rng.normal(size=(4, 3)))
    blur = 0.3 * jnp.eye(4)
    stationary = core.gaussian(jnp.zeros(3), core.dense(spread))
    seen = view @ spread @ view.T + blur
    gain = jnp.linalg.solve(seen, view @ spread).T
    told = spread - gain @ view @ spread
    generative = markov.state_space(
        stationary,
        markov.linear_gaussian(matrix, core.dense((noise + noise.T) / 2)),
        markov.linear_gaussian(view, core.dense(blur)),
    )
    emission = markov.discriminative(linear, constant, stationary, (gain, (told + told.T) / 2))
    return generative, markov.state_space(stationary, generative.transition, emission), seen


def test_it_is_kalmans_filter_where_the_regression_is_exact(x64):
    generative, discriminative, seen = model()
    _, y = generative.sample(jax.random.key(0), 50)
    exact = markov.filter(generative, y)
    marginals = jax.vmap(
        lambda y: jax.scipy.stats.multivariate_normal.logpdf(y, jnp.zeros(4), seen)
    )(y)
    for block in (None, 8):
        found = markov.filter(discriminative, y, block=block)
        np.testing.assert_allclose(found.laws.mean, exact.laws.mean, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(
            found.laws.covariance.factor @ jnp.swapaxes(found.laws.covariance.factor, 1, 2),
            exact.laws.covariance.factor @ jnp.swapaxes(exact.laws.covariance.factor, 1, 2),
            rtol=1e-9,
            atol=1e-11,
        )
        ratio = exact.log_evidence - jnp.cumsum(marginals)
        np.testing.assert_allclose(found.log_evidence, ratio, rtol=1e-9, atol=1e-11)


def wide(params, y):
    """A regression that knows less than the prior in one direction."""
    return jnp.diag(jnp.array([0.1, 5.0, 0.3]))


def test_what_knows_less_than_the_prior_is_not_divided_by_it(x64):
    """The robust form: P' = (Q^-1 + M^-1)^-1 then, by its formula."""
    discriminative = model()[1]
    stationary = discriminative.initial
    emission = markov.discriminative(linear, wide, stationary, discriminative.emission.params)
    y = jnp.array([0.5, -1.0, 0.3, 0.8])
    law, _ = emission.observe(stationary, y)
    told, prior = jnp.linalg.inv(wide((), y)), jnp.linalg.inv(stationary.covariance.dense(3))
    covariance = jnp.linalg.inv(told + prior)
    np.testing.assert_allclose(law.covariance.dense(3), covariance, rtol=1e-10, atol=1e-12)
    mean = covariance @ told @ linear(emission.params, y)
    np.testing.assert_allclose(law.mean, mean, rtol=1e-10)


def cube(params, x):
    """A map of the state that saturates: its slope is wrong at a wrong mean."""
    return params @ jnp.tanh(2 * x)


def root(params, x):
    return 0.5 * jnp.eye(40)


def fitted(params, y):
    design = jnp.concatenate([y, jnp.ones(1)])
    return params[0] @ design


def test_it_beats_linearisation_of_a_misspecified_model(x64):
    """Forty saturating sensors whose noise is heavier than their model says; a learned regression
    against the extended Kalman filter of that model, on one path of 400 states."""
    key_sensors, key_path, key_heavy, key_train = jax.random.split(jax.random.key(1), 4)
    sensors = jax.random.normal(key_sensors, (40, 2))
    stationary = core.gaussian(jnp.zeros(2), core.Diagonal(jnp.ones(2)))
    step = markov.linear_gaussian(0.9 * jnp.eye(2), core.Diagonal(jnp.full(2, np.sqrt(0.19))))
    modelled = markov.state_space(stationary, step, markov.gaussian_step(cube, root, sensors))

    def see(key, x):  # the sensors are blind in a random half of the times, and noise is Student's
        noise, blind = jax.random.split(key)
        signal = cube(sensors, x) * jax.random.bernoulli(blind, 0.5, (40,))
        return signal + jax.random.t(noise, 3.0, (40,))

    x, _ = modelled.sample(key_path, 400)
    y = jax.vmap(see)(jax.random.split(key_heavy, 400), x)
    states = jax.random.normal(key_train, (2000, 2))
    views = jax.vmap(see)(jax.random.split(key_train, 2000), states)
    design = jnp.concatenate([views, jnp.ones((2000, 1))], axis=1)
    weights = jnp.linalg.lstsq(design, states)[0].T
    spread = jnp.cov((states - design @ weights.T).T)
    emission = markov.discriminative(fitted, constant, stationary, (weights, spread))
    learned = markov.filter(markov.state_space(stationary, step, emission), y).laws.mean
    error = jnp.mean(jnp.square(learned - x))

    def extended(carry, y):
        law = step.push(carry)
        law, _ = markov.linearise(modelled.emission, law.mean).observe(law, y)
        return law, law.mean

    start = core.gaussian(jnp.zeros(2), core.dense(jnp.eye(2)))
    other = jax.lax.scan(extended, start, y)[1]
    assert error < 0.8 * jnp.mean(jnp.square(other - x))
    assert error < 0.5  # the states' own variance is one
