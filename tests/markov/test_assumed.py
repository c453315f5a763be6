"""Extended and cubature filters against formulas by hand, and exact where the model is linear."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, markov

NOISE, BLUR = 0.3, 0.5


def bend(_, x):
    return jnp.sin(x) + x / 2


def cube(_, x):
    return x + x**3 / 10


def shake(_, x):
    return NOISE * jnp.eye(1)


def smear(_, x):
    return BLUR * jnp.eye(1)


def curved():
    return markov.state_space(
        core.gaussian(jnp.array([0.4]), core.Diagonal(jnp.array([0.7]))),
        markov.gaussian_step(bend, shake),
        markov.gaussian_step(cube, smear),
    )


def by_hand(y, moments):
    """Predict and update with one number: ``moments`` gives mean, slope and excess of a map."""
    m, p, evidence, means, variances = 0.4, 0.49, 0.0, [], []
    for t, seen in enumerate(y):
        if t:
            mean, slope, excess = moments(bend, m, p)
            m, p = mean, slope**2 * p + excess + NOISE**2
        mean, slope, excess = moments(cube, m, p)
        s = slope**2 * p + excess + BLUR**2
        evidence += -((seen - mean) ** 2) / (2 * s) - np.log(2 * np.pi * s) / 2
        m, p = m + slope * p / s * (seen - mean), p - (slope * p) ** 2 / s
        means.append(m)
        variances.append(p)
    return np.array(means), np.array(variances), evidence


def taylor(f, m, p):
    """The map and its slope at the mean."""
    return float(f(None, jnp.asarray(m))), float(jax.grad(lambda x: f(None, x))(jnp.asarray(m))), 0


def cubature(f, m, p):
    """Two points one standard deviation off."""
    up, down = (float(f(None, jnp.asarray(m + s * np.sqrt(p)))) for s in (1, -1))
    slope = (up - down) / (2 * np.sqrt(p))
    mean = (up + down) / 2
    return mean, slope, ((up - mean) ** 2 + (down - mean) ** 2) / 2 - slope**2 * p


@pytest.mark.parametrize("form", [core.dense, core.full])
@pytest.mark.parametrize("way", ["extended", "unscented"])
def test_filters_by_hand(way, form, x64):
    y = np.array([0.9, 1.8, -0.4, 0.1, 2.2])
    model = curved()
    start = core.gaussian(jnp.array([0.4]), form(jnp.array([[0.49]])))
    model = markov.state_space(start, model.transition, model.emission)
    if way == "extended":
        model, moments = markov.extended(model), taylor
    else:
        model, moments = markov.unscented(model), cubature
    filtered = markov.filter(model, jnp.asarray(y)[:, None])
    means, variances, evidence = by_hand(y, moments)
    np.testing.assert_allclose(filtered.laws.mean[:, 0], means, rtol=1e-10)
    found = jax.vmap(lambda law: law.covariance.dense(1))(filtered.laws)
    np.testing.assert_allclose(found[:, 0, 0], variances, rtol=1e-9)
    np.testing.assert_allclose(filtered.log_evidence[-1], evidence, rtol=1e-10)


def linear(params, x):
    return params @ x + 1


def wide(_, x):
    return jnp.array([[0.5, 0.1], [0.0, 0.3]])


@pytest.mark.parametrize("way", ["extended", "unscented"])
def test_exact_where_the_model_is_linear(way, x64):
    matrix = jnp.array([[0.8, 0.4], [-0.3, 0.9]])
    start = core.gaussian(jnp.zeros(2), core.dense(jnp.eye(2)))
    noise = core.dense(wide(None, None) @ wide(None, None).T)
    exact = markov.linear_gaussian(matrix, noise, jnp.ones(2))
    step = markov.gaussian_step(linear, wide, matrix)
    plain = markov.state_space(start, exact, exact)
    model = markov.state_space(start, step, step)
    model = markov.extended(model) if way == "extended" else markov.unscented(model)
    _, y = plain.sample(jax.random.key(0), 5)
    wanted, found = markov.filter(plain, y), markov.filter(model, y)
    chex.assert_trees_all_close(found.laws.mean, wanted.laws.mean, rtol=1e-10)
    chex.assert_trees_all_close(found.log_evidence, wanted.log_evidence, rtol=1e-10)
    smoothed = markov.smooth(plain, wanted), markov.smooth(model, found)
    chex.assert_trees_all_close(smoothed[0].mean, smoothed[1].mean, rtol=1e-9)
    paths = markov.sample_path(jax.random.key(1), model, found)
    assert paths.shape == (5, 2)
    assert jnp.all(jnp.isfinite(paths))


def test_a_process_in_continuous_time_seen_now_and_then(x64):
    """Exact steps between irregular times are many small steps seen at some of them."""
    pull, sigma = jnp.array([[-0.5, 1.0], [-1.0, -0.2]]), jnp.array([[0.3], [0.6]])
    grid = 0.1
    places = np.array([0, 3, 4, 9, 15])
    start = core.gaussian(jnp.ones(2), core.dense(jnp.eye(2)))
    see = markov.linear_gaussian(jnp.array([[1.0, 0.0]]), core.Diagonal(jnp.array([0.4])))
    y = jnp.array([[0.3], [1.4], [1.1], [-0.2], [0.6]])

    def move(dt):
        return markov.linear_diffusion(pull, jnp.array([0.1, 0.0]), sigma, dt)

    steps = markov.over_time(jax.vmap(move)(grid * jnp.diff(places)))
    few = markov.filter(markov.state_space(start, steps, see), y)
    seen = jnp.zeros(16, bool).at[places].set(True)
    padded = jnp.zeros((16, 1)).at[places].set(y)
    many = markov.filter(markov.state_space(start, move(grid), see), padded, observed=seen)
    np.testing.assert_allclose(few.log_evidence, many.log_evidence[places], rtol=1e-9)
    np.testing.assert_allclose(few.laws.mean, many.laws.mean[places], rtol=1e-8)


@core.record
class Opaque:
    """A kernel that only draws."""

    def sample(self, key, x):
        return x

    def log_prob(self, x, y):
        return 0.0


def test_bad_input_is_refused():
    model = curved()
    hidden = markov.state_space(model.initial, Opaque(), model.emission)
    with pytest.raises(TypeError, match=r"Opaque says no mean.*particle_filter"):
        markov.extended(hidden)
    y = jnp.zeros((3, 1))
    with pytest.raises(TypeError, match=r"leave block out"):
        markov.filter(markov.extended(model), y, block=2)
    with pytest.raises(TypeError, match=r"markov\.extended"):
        markov.filter(model, y)
