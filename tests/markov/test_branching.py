"""Trees and graphs against enumeration and one dense Gaussian; the most probable path."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, markov

PARENTS = [0, 0, 1, 1, 2]


def finite_tree():
    """Six nodes of three states, the leaves seen through two-symbol kernels."""
    rng = np.random.default_rng(0)
    start, moves = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), (5, 3))
    views = rng.dirichlet(np.ones(2), 3)
    seen = {3: 0, 4: 1, 5: 1}
    model = markov.tree(
        core.finite(jnp.asarray(start)), jax.vmap(markov.finite)(jnp.asarray(moves)), PARENTS
    )
    values = np.zeros((6, 3))
    for node, y in seen.items():
        values[node] = np.log(views[:, y])
    total, marginals = 0.0, np.zeros((6, 3))
    for states in itertools.product(range(3), repeat=6):
        p = start[states[0]]
        for i, parent in enumerate(PARENTS):
            p *= moves[i, states[parent], states[i + 1]]
        p *= np.exp(sum(values[i, s] for i, s in enumerate(states)))
        total += p
        marginals[np.arange(6), states] += p
    return model, markov.FiniteMessage(jnp.asarray(values)), total, marginals / total


def test_a_tree_of_finite_states_against_enumeration(x64):
    model, messages, total, marginals = finite_tree()
    up = markov.tree_filter(model, messages)
    np.testing.assert_allclose(up.log_evidence, np.log(total), rtol=1e-12)
    keys = jax.random.split(jax.random.key(0), 20_000)
    states, weights = jax.vmap(lambda key: markov.tree_guide(key, model, up))(keys)
    np.testing.assert_allclose(weights, np.log(total), rtol=1e-12)
    error = np.sqrt(marginals * (1 - marginals) / len(keys))
    assert (np.abs(jax.nn.one_hot(states, 3).mean(0) - marginals) / error).max() < 4.5


def test_a_tree_with_a_surrogate_is_weighed(x64):
    """Messages over other matrices, ratios of the likelihoods apart: E[w] is the evidence."""
    model, messages, total, _ = finite_tree()
    flat = jax.tree.map(lambda a: jax.nn.log_softmax(0.5 * a), model.kernels)
    other = markov.tree(model.initial, flat, PARENTS)
    claimed = markov.FiniteMessage(0.7 * messages.log_values)

    def log_ratio(states):
        return jnp.sum((messages.log_values - claimed.log_values)[jnp.arange(6), states])

    up = markov.tree_filter(model, claimed, surrogate=other)
    keys = jax.random.split(jax.random.key(1), 20_000)
    draw = jax.vmap(lambda key: markov.tree_guide(key, model, up, log_ratio)[1])
    weights = jnp.exp(draw(keys)) / total
    assert weights.std() > 0.01
    assert jnp.abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(len(keys))


def test_a_tree_of_numbers_against_one_gaussian(x64):
    """Brownian motion on a tree: covariances are the lengths of shared branches."""
    lengths = np.array([1.0, 0.5, 0.7, 0.2, 1.3])
    kernels = jax.vmap(lambda s: markov.linear_gaussian(jnp.eye(1), core.Diagonal(s[None])))(
        jnp.sqrt(jnp.asarray(lengths))
    )
    model = markov.tree(
        core.gaussian(jnp.array([0.5]), core.Diagonal(jnp.array([0.1]))), kernels, PARENTS
    )
    paths = np.zeros((6, 5))
    for i, parent in enumerate(PARENTS):
        paths[i + 1] = paths[parent]
        paths[i + 1, i] = 1
    shared = 0.01 + (paths * lengths) @ paths.T
    y, blur = np.array([0.3, 1.2, -0.4]), 0.2
    leaves = [3, 4, 5]
    view = markov.linear_gaussian(jnp.eye(1), core.Diagonal(jnp.array([blur])))
    messages = jax.vmap(view.likelihood)(jnp.zeros((6, 1)).at[jnp.array(leaves), 0].set(y))
    seen = jnp.isin(jnp.arange(6), jnp.array(leaves))
    messages = jax.tree.map(
        lambda a: jnp.where(seen.reshape(-1, *[1] * (a.ndim - 1)), a, 0.0), messages
    )
    blurred = shared[np.ix_(leaves, leaves)] + blur**2 * np.eye(3)
    exact = jax.scipy.stats.multivariate_normal.logpdf(y, np.full(3, 0.5), blurred)
    up = markov.tree_filter(model, messages)
    np.testing.assert_allclose(up.log_evidence, exact, rtol=1e-11)
    states, weights = jax.vmap(lambda key: markov.tree_guide(key, model, up))(
        jax.random.split(jax.random.key(2), 20_000)
    )
    np.testing.assert_allclose(weights, exact, rtol=1e-11)
    gain = shared[:, leaves] @ np.linalg.inv(blurred)
    mean = 0.5 + gain @ (y - 0.5)
    variance = np.diag(shared - gain @ shared[leaves])
    z = (states[..., 0].mean(0) - mean) / np.sqrt(variance / 20_000)
    assert np.abs(z).max() < 4


def test_a_graph_of_finite_states_is_weighed(x64):
    """a -> c <- b, c -> d, (b, d) -> e; c and e seen: E[w] is the evidence by enumeration."""
    rng = np.random.default_rng(3)
    a, b = rng.dirichlet(np.ones(2)), rng.dirichlet(np.ones(3))
    c, d, e = (rng.dirichlet(np.ones(m), n) for n, m in ((6, 2), (2, 3), (9, 2)))
    model = markov.graph(
        [core.finite(jnp.asarray(p)) for p in (a, b)]
        + [markov.finite(jnp.asarray(m)) for m in (c, d, e)],
        [[], [], [0, 1], [2], [1, 3]],
    )
    seen = {2: np.array([0.9, 0.2]), 4: np.array([0.1, 1.5])}
    total, marginal = 0.0, np.zeros(3)
    for s in itertools.product(range(2), range(3), range(2), range(3), range(2)):
        p = a[s[0]] * b[s[1]] * c[3 * s[0] + s[1], s[2]] * d[s[2], s[3]] * e[3 * s[1] + s[3], s[4]]
        p *= seen[2][s[2]] * seen[4][s[4]]
        total += p
        marginal[s[1]] += p
    messages = {i: markov.FiniteMessage(jnp.log(jnp.asarray(v))) for i, v in seen.items()}
    inward = markov.graph_filter(model, messages)
    keys = jax.random.split(jax.random.key(3), 20_000)
    states, log_weight = jax.jit(jax.vmap(lambda key: markov.graph_guide(key, model, inward)))(keys)
    w = jnp.exp(log_weight) / total
    assert 0.01 < w.std() < 1
    assert jnp.abs(w.mean() - 1) < 4 * w.std() / np.sqrt(len(keys))
    found = w[:, None] * (jax.nn.one_hot(states[1], 3) - jnp.asarray(marginal / total)[None])
    assert (jnp.abs(found.mean(0)) < 4 * found.std(0) / np.sqrt(len(keys))).all()


def test_a_graph_of_numbers_is_weighed(x64):
    """x, y independent, z = x - 2 y + noise, seen: the evidence is a Gaussian density."""
    prior = core.gaussian(jnp.array([0.5]), core.Diagonal(jnp.array([1.0])))
    kernel = markov.linear_gaussian(jnp.array([[1.0, -2.0]]), core.Diagonal(jnp.array([0.7])))
    model = markov.graph([prior, prior, kernel], [[], [], [0, 1]])
    view = markov.linear_gaussian(jnp.eye(1), core.Diagonal(jnp.array([0.4])))
    inward = markov.graph_filter(model, {2: view.likelihood(jnp.array([1.3]))})
    exact = jax.scipy.stats.norm.logpdf(1.3, 0.5 - 1.0, np.sqrt(1 + 4 + 0.49 + 0.16))
    keys = jax.random.split(jax.random.key(4), 50_000)
    draw = jax.jit(jax.vmap(lambda key: markov.graph_guide(key, model, inward)))
    states, log_weight = draw(keys)
    w = jnp.exp(log_weight - exact)
    assert jnp.abs(w.mean() - 1) < 4 * w.std() / np.sqrt(len(keys))
    mean = 0.5 - 2 / (1 + 4 + 0.49 + 0.16) * (1.3 + 0.5)
    found = w * (states[1][:, 0] - mean)
    assert jnp.abs(found.mean()) < 4 * found.std() / np.sqrt(len(keys))


def test_single_parents_leave_no_weight(x64):
    rng = np.random.default_rng(5)
    kernels = [markov.finite(jnp.asarray(rng.dirichlet(np.ones(3), 3))) for _ in range(2)]
    model = markov.graph(
        [core.finite(jnp.asarray(rng.dirichlet(np.ones(3)))), *kernels], [[], [0], [0]]
    )
    seen = {i: markov.FiniteMessage(jnp.asarray(rng.normal(size=3))) for i in (1, 2)}
    inward = markov.graph_filter(model, seen)
    weights = [markov.graph_guide(jax.random.key(i), model, inward)[1] for i in range(5)]
    np.testing.assert_allclose(weights, weights[0], rtol=1e-12)


def test_orders_are_checked():
    with pytest.raises(ValueError, match="each comes after its parent"):
        markov.tree(None, None, [0, 2])
    with pytest.raises(ValueError, match="each comes after its parents"):
        markov.graph([None, None], [[1], []])
    with pytest.raises(ValueError, match="every node has a kernel"):
        markov.graph([None], [[], [0]])


def test_the_most_probable_path_against_enumeration(x64):
    rng = np.random.default_rng(6)
    for _ in range(5):
        start, moves = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), 3)
        views, y = rng.dirichlet(np.ones(4), 3), rng.integers(4, size=5)
        there = np.array([True, True, False, True, True])
        model = markov.state_space(
            core.finite(jnp.asarray(start)),
            markov.finite(jnp.asarray(moves)),
            markov.finite(jnp.asarray(views)),
        )

        def log_prob(path, start=start, moves=moves, views=views, y=y, there=there):
            p = np.log(start[path[0]]) + np.log(views[path, y])[there].sum()
            return p + np.log(moves[path[:-1], path[1:]]).sum()

        best = max(map(np.array, itertools.product(range(3), repeat=5)), key=log_prob)
        path, value = markov.viterbi(model, jnp.asarray(y), observed=jnp.asarray(there))
        np.testing.assert_array_equal(path, best)
        np.testing.assert_allclose(value, log_prob(best), rtol=1e-12)
