"""Filters, smoothers and guided paths against enumeration and against one dense Gaussian."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal

from jaxinf import core, markov

LENGTH = 6


def over(make, items):
    return markov.over_time(jax.tree.map(lambda *a: jnp.stack(a), *map(make, items)))


def finite_model():
    """Three states, four symbols, every time its own matrices."""
    rng = np.random.default_rng(0)
    start = rng.dirichlet(np.ones(3))
    moves = rng.dirichlet(np.ones(3), (LENGTH - 1, 3))
    seen = rng.dirichlet(np.ones(4), (LENGTH, 3))
    y = rng.integers(4, size=LENGTH)
    model = markov.state_space(
        core.finite(jnp.asarray(start)),
        markov.over_time(jax.vmap(markov.finite)(jnp.asarray(moves))),
        markov.over_time(jax.vmap(markov.finite)(jnp.asarray(seen))),
    )
    return model, jnp.asarray(y), (start, moves, seen)


def enumerate_paths(numbers, y, observed):
    """Probabilities of all paths together with what was seen."""
    start, moves, seen = numbers
    for path in itertools.product(range(3), repeat=LENGTH):
        p = start[path[0]]
        for t in range(LENGTH):
            p *= moves[t - 1, path[t - 1], path[t]] if t else 1
            p *= seen[t, path[t], y[t]] if observed[t] else 1
        yield path, p


def gaussian_model(form=core.dense):
    """Three numbers seen through two, every time its own kernels."""
    rng = np.random.default_rng(1)
    moves = rng.normal(size=(LENGTH - 1, 3, 3)) / 2
    offsets = rng.normal(size=(LENGTH - 1, 3))
    views = rng.normal(size=(LENGTH, 2, 3))
    y = rng.normal(size=(LENGTH, 2))
    noise, blur = np.array([0.5, 1.0, 0.3]), np.array([0.4, 0.7])
    spread = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]])
    model = markov.state_space(
        core.gaussian(jnp.array([1.0, -1.0, 0.5]), form(jnp.asarray(spread))),
        over(
            lambda i: markov.linear_gaussian(
                jnp.asarray(moves[i]), core.Diagonal(jnp.asarray(noise)), jnp.asarray(offsets[i])
            ),
            range(LENGTH - 1),
        ),
        over(
            lambda t: markov.linear_gaussian(
                jnp.asarray(views[t]), core.Diagonal(jnp.asarray(blur))
            ),
            range(LENGTH),
        ),
    )
    return model, jnp.asarray(y), (spread, moves, offsets, views, noise, blur)


def dense_gaussian(numbers, y, observed):
    """Mean and covariance of the whole path given what was seen, and the evidence."""
    spread, moves, offsets, views, noise, blur = numbers
    mean, n = [np.array([1.0, -1.0, 0.5])], 3 * LENGTH
    joint = np.zeros((n, n))
    joint[:3, :3] = spread
    for t in range(1, LENGTH):
        a, b = slice(3 * t - 3, 3 * t), slice(3 * t, 3 * t + 3)
        mean.append(moves[t - 1] @ mean[-1] + offsets[t - 1])
        joint[b, : 3 * t] = moves[t - 1] @ joint[a, : 3 * t]
        joint[: 3 * t, b] = joint[b, : 3 * t].T
        joint[b, b] = moves[t - 1] @ joint[a, a] @ moves[t - 1].T + np.diag(noise**2)
    mean = np.concatenate(mean)
    rows = [(t, i) for t in range(LENGTH) if observed[t] for i in range(2)]
    view = np.zeros((len(rows), n))
    for r, (t, i) in enumerate(rows):
        view[r, 3 * t : 3 * t + 3] = views[t, i]
    data = np.array([y[t, i] for t, i in rows])
    blurred = view @ joint @ view.T + np.diag([blur[i] ** 2 for _, i in rows])
    gain = joint @ view.T @ np.linalg.inv(blurred)
    evidence = multivariate_normal.logpdf(data, view @ mean, blurred)
    return mean + gain @ (data - view @ mean), joint - gain @ view @ joint, evidence


OBSERVED = {"all": [True] * LENGTH, "some": [False, True, True, False, True, False]}


@pytest.fixture(params=OBSERVED)
def observed(request):
    return np.array(OBSERVED[request.param])


@pytest.mark.parametrize("block", [None, 1, 4, 10])
def test_finite_states_against_enumeration(block, observed, x64):
    model, y, numbers = finite_model()
    total, marginals = 0.0, np.zeros((LENGTH, 3))
    for path, p in enumerate_paths(numbers, np.asarray(y), observed):
        total += p
        marginals[np.arange(LENGTH), path] += p
    filtered = markov.filter(model, y, observed=jnp.asarray(observed), block=block)
    np.testing.assert_allclose(filtered.log_evidence[-1], np.log(total), rtol=1e-12)
    smoothed = markov.smooth(model, filtered, block=block)
    np.testing.assert_allclose(np.exp(smoothed.log_probs), marginals / total, rtol=1e-11)


@pytest.mark.parametrize("form", [core.dense, core.full])
@pytest.mark.parametrize("block", [None, 1, 4, 10])
def test_gaussian_states_against_one_dense_gaussian(block, form, observed, x64):
    model, y, numbers = gaussian_model(form)
    mean, covariance, evidence = dense_gaussian(numbers, np.asarray(y), observed)
    filtered = markov.filter(model, y, observed=jnp.asarray(observed), block=block)
    np.testing.assert_allclose(filtered.log_evidence[-1], evidence, rtol=1e-11)
    kept = core.Full if form is core.full and block is None else core.Dense
    assert isinstance(filtered.laws.covariance, kept)
    smoothed = markov.smooth(model, filtered, block=block)
    np.testing.assert_allclose(smoothed.mean.ravel(), mean, rtol=1e-10, atol=1e-11)
    found = jax.vmap(lambda law: law.covariance.dense(3))(smoothed)
    blocks = np.stack([covariance[3 * t : 3 * t + 3, 3 * t : 3 * t + 3] for t in range(LENGTH)])
    np.testing.assert_allclose(found, blocks, rtol=1e-9, atol=1e-11)


def test_evidence_until_each_time(x64):
    model, y, numbers = finite_model()
    for t in (0, 2):
        until = np.arange(LENGTH) <= t
        total = sum(p for _, p in enumerate_paths(numbers, np.asarray(y), until))
        for block in (None, 3):
            found = markov.filter(model, y, block=block).log_evidence[t]
            np.testing.assert_allclose(found, np.log(total), rtol=1e-12)


def models():
    return {"finite": finite_model, "gaussian": gaussian_model}


@pytest.mark.parametrize("kind", ["finite", "gaussian"])
def test_messages_hold_the_evidence_and_leave_no_weight(kind, observed, x64):
    model, y, _ = models()[kind]()
    evidence = markov.filter(model, y, observed=jnp.asarray(observed)).log_evidence[-1]
    back = markov.backward_filter(model, y, observed=jnp.asarray(observed))
    np.testing.assert_allclose(back.log_evidence, evidence, rtol=1e-12)
    keys = jax.random.split(jax.random.key(0), 10)
    _, weights = jax.vmap(lambda key: markov.forward_guide(key, model, back))(keys)
    np.testing.assert_allclose(weights, evidence, rtol=1e-11)


@pytest.mark.parametrize("kind", ["finite", "gaussian"])
@pytest.mark.parametrize("way", ["guided", "backward"])
def test_paths_follow_the_smoothing_law(kind, way, observed, x64):
    model, y, _ = models()[kind]()
    filtered = markov.filter(model, y, observed=jnp.asarray(observed))
    keys = jax.random.split(jax.random.key(1), 20_000)
    if way == "guided":
        back = markov.backward_filter(model, y, observed=jnp.asarray(observed))
        paths = jax.vmap(lambda key: markov.forward_guide(key, model, back)[0])(keys)
    else:
        paths = jax.vmap(lambda key: markov.sample_path(key, model, filtered))(keys)
    smoothed = markov.smooth(model, filtered)
    if kind == "finite":
        found = jax.nn.one_hot(paths, 3)
        mean, variance = jnp.exp(smoothed.log_probs), found.var(0)
    else:
        found, mean = paths, smoothed.mean
        factor = smoothed.covariance.factor
        variance = jnp.sum(factor**2, axis=2)
        n = len(keys)
        spread = paths.var(0) / variance - 1
        assert jnp.abs(spread).max() < 5 * np.sqrt(2 / n)
    error = jnp.sqrt(variance / len(keys)) + 1e-9
    assert jnp.abs((found.mean(0) - mean) / error).max() < 4.5  # of 18 numbers


def test_what_is_drawn_follows_the_model(x64):
    """The first and second state's law, and the last observation's, pushed exactly."""
    model, _, (start, moves, seen) = finite_model()
    keys = jax.random.split(jax.random.key(2), 20_000)
    path, y = jax.vmap(lambda key: model.sample(key, LENGTH))(keys)
    law = start
    for t in range(LENGTH):
        law = law @ moves[t - 1] if t else law
        for found, exact in (
            (jax.nn.one_hot(path[:, t], 3), law),
            (jax.nn.one_hot(y[:, t], 4), law @ seen[t]),
        ):
            z = (found.mean(0) - exact) / np.sqrt(exact * (1 - exact) / len(keys))
            assert np.abs(z).max() < 4.5


def wave(params, x):
    """Of a nonlinear step."""
    return 0.7 * x + params * jnp.sin(x)


def blur(params, x):
    return 0.4 * jnp.eye(1)


def square(params, x):
    return params * x + 0.1 * x**2


def test_a_nonlinear_process_under_a_linear_surrogate(x64):
    """E[w] is the evidence on a fine grid; sines and squares are neither linear nor symmetric."""
    model = markov.state_space(
        core.gaussian(jnp.array([0.3]), core.Diagonal(jnp.array([1.0]))),
        markov.gaussian_step(wave, blur, jnp.asarray(0.8)),
        markov.gaussian_step(square, blur, jnp.asarray(1.0)),
    )
    y = jnp.array([[0.2], [1.5], [1.9], [0.4]])
    surrogate = markov.linearise_along(model, y / 1.1)
    back = markov.backward_filter(model, y, surrogate=surrogate)
    keys = jax.random.split(jax.random.key(3), 20_000)
    _, log_weight = jax.vmap(lambda key: markov.forward_guide(key, model, back))(keys)

    grid = jnp.linspace(-8, 8, 1201)
    width = grid[1] - grid[0]
    normal = jax.scipy.stats.norm.logpdf
    step = jnp.exp(normal(grid[None, :], wave(0.8, grid)[:, None], 0.4)) * width
    p = jnp.exp(normal(grid, 0.3, 1.0)) * width
    for t in range(4):
        p = (p @ step if t else p) * jnp.exp(normal(y[t, 0], square(1.0, grid), 0.4))
    weights = jnp.exp(log_weight) / p.sum()
    assert 0.02 < weights.std() < 3
    assert jnp.abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(len(keys))


def test_linearised_at_a_linear_process_is_itself(x64):
    model, y, _ = gaussian_model()
    path = jnp.asarray(np.random.default_rng(7).normal(size=(LENGTH, 3)))
    same = markov.linearise_along(model, path)
    chex.assert_trees_all_close(
        markov.filter(same, y).log_evidence, markov.filter(model, y).log_evidence, rtol=1e-12
    )


def test_bad_input_is_refused():
    half = markov.finite(jnp.array([[0.5, 0.5], [0.1, 0.9]]))
    law = core.finite(jnp.array([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"sum to one.*divide by"):
        markov.finite(jnp.array([[0.5, 0.6], [0.1, 0.9]]))
    with pytest.raises(ValueError, match="must not be negative"):
        markov.finite(jnp.array([[-0.5, 1.5], [0.1, 0.9]]))
    with pytest.raises(ValueError, match=r"jax\.vmap"):
        markov.finite(jnp.ones((2, 2, 2)) / 2)
    with pytest.raises(ValueError, match="ends in 2 states, the second starts from 3 numbers"):
        markov.compose(half, markov.linear_gaussian(jnp.ones((1, 3)), core.Diagonal(1.0)))
    with pytest.raises(ValueError, match="to the same states"):
        markov.state_space(law, markov.finite(jnp.ones((2, 4)) / 4), half)
    with pytest.raises(ValueError, match="emission starts from 3"):
        markov.state_space(law, half, markov.finite(jnp.ones((3, 4)) / 4))
    with pytest.raises(ValueError, match=r"offset must have shape \(2,\)"):
        markov.linear_gaussian(jnp.eye(2), core.Diagonal(1.0), jnp.zeros(3))
    with pytest.raises(ValueError, match="noise must be over 2"):
        markov.linear_gaussian(jnp.eye(2), core.dense(jnp.eye(3)))
    with pytest.raises(ValueError, match=r"shape \(to, from\)"):
        markov.linear_gaussian(jnp.zeros((2, 2, 2)), core.Diagonal(1.0))
    model = markov.state_space(law, half, half)
    with pytest.raises(ValueError, match="mask of shape"):
        markov.filter(model, jnp.zeros(3, int), observed=jnp.ones(2, bool))
    with pytest.raises(ValueError, match="block must be"):
        markov.filter(model, jnp.zeros(3, int), block=0)
    with pytest.raises(TypeError, match=r"surrogate=markov\.linearise_along"):
        markov.backward_filter(
            markov.state_space(
                core.gaussian(jnp.zeros(1), core.Diagonal(1.0)),
                markov.gaussian_step(wave, blur, 1.0),
                markov.linear_gaussian(jnp.eye(1), core.Diagonal(1.0)),
            ),
            jnp.zeros((3, 1)),
        )
    with pytest.raises(TypeError, match=r"no sample.*markov\.conditional"):
        markov.guide(object(), half)
    with pytest.raises(TypeError, match="must carry messages back"):
        markov.guide(half, markov.gaussian_step(wave, blur, 1.0))


def test_states_without_mass_are_said(x64):
    """An inverse has no mass where nothing could have led; it composes, draws nowhere, no NaN."""
    kernel = markov.finite(jnp.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]]))
    prior = core.finite(jnp.array([1.0, 0.0]))
    inverse = kernel.invert(prior)
    assert not jnp.isnan(inverse.log_matrix).any()
    np.testing.assert_allclose(jnp.exp(inverse.log_matrix), [[1, 0], [1, 0], [0, 0]])
    assert inverse.sample(jax.random.key(0), jnp.asarray(2)) == -1
    assert inverse.log_prob(jnp.asarray(2), jnp.asarray(0)) == -jnp.inf
    lens = markov.compose(kernel, inverse)
    assert not jnp.isnan(lens.push(prior).log_probs).any()
    impossible = markov.filter(
        markov.state_space(prior, markov.finite(jnp.eye(2)), kernel), jnp.array([0, 2, 1])
    )
    np.testing.assert_array_equal(impossible.log_evidence[1:], [-jnp.inf, -jnp.inf])
    assert not jnp.isnan(impossible.laws.log_probs).any()
