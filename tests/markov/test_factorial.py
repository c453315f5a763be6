"""Factorial hidden Markov models: exact in one part, locally wrong by less the wider the radius."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, markov


def model(chains, radius, blocks=None, seed=0):
    """Binary chains in a row, each pair of neighbours seen together, every chain by itself."""
    rng = np.random.default_rng(seed)
    initial = rng.dirichlet(np.ones(2), chains)
    transition = rng.dirichlet(2 * np.ones(2), (chains, 2)) * 0.4 + 0.6 * np.eye(2)
    factors = [(v, v + 1) for v in range(chains - 1)]
    made = markov.factorial(
        jnp.asarray(initial), jnp.asarray(transition), factors, radius=radius, blocks=blocks
    )
    return made, (initial, transition, factors)


def tables(chains, length, seed=1):
    return np.random.default_rng(seed).normal(size=(length, chains - 1, 2, 2))


def joint(numbers, log_likelihoods):
    """Filtered and smoothed laws over all joint states, and the evidence until each time."""
    initial, transition, factors = numbers
    chains = len(initial)
    states = np.array(np.unravel_index(np.arange(2**chains), [2] * chains)).T
    law = np.prod(initial[np.arange(chains), states], axis=1)
    moves = np.prod(transition[np.arange(chains), states[:, None, :], states[None, :, :]], axis=2)
    seen = np.exp(
        np.array(
            [
                [t[f][tuple(s[list(v)])] for f, v in enumerate(factors)]
                for t in log_likelihoods
                for s in states
            ]
        ).sum(1)
    ).reshape(len(log_likelihoods), -1)
    laws, sums = [], []
    for t in range(len(seen)):
        law = (law @ moves if t else law) * seen[t]
        sums.append(law.sum())
        law = law / law.sum()
        laws.append(law)
    smoothed = [laws[-1]]
    for t in reversed(range(len(seen) - 1)):
        back = laws[t][:, None] * moves
        smoothed.append((back / back.sum(0)) @ smoothed[-1])
    return states, np.array(laws), np.array(smoothed[::-1]), np.log(sums)


def marginals(states, laws):
    return np.stack([[law @ (states == s) for s in range(2)] for law in laws]).swapaxes(1, 2)


def test_one_part_of_all_chains_is_the_exact_filter(x64):
    made, numbers = model(4, radius=0, blocks=[[0, 1, 2, 3]])
    seen = tables(4, 5)
    _, laws, smoothed, sums = joint(numbers, seen)
    found, total = markov.factorial_filter(made, jnp.asarray(seen))
    np.testing.assert_allclose(np.exp(found[:, 0]), laws, rtol=1e-10)
    np.testing.assert_allclose(total[:, 0], sums, rtol=1e-10)
    back = markov.factorial_smooth(made, found)
    np.testing.assert_allclose(np.exp(back[:, 0]), smoothed, rtol=1e-10)


def test_one_time_with_all_factors_is_exact(x64):
    """Before anything is split, parts with the whole row as neighbourhood have their marginals."""
    made, numbers = model(6, radius=6, blocks=[[0, 3], [1, 2], [4, 5]])
    seen = tables(6, 1)
    states, laws, _, _ = joint(numbers, seen)
    found, _ = markov.factorial_filter(made, jnp.asarray(seen))
    for k, part in enumerate(made.blocks):
        exact = [
            laws[0] @ ((states[:, part[0]] == a) & (states[:, part[1]] == b))
            for a in range(2)
            for b in range(2)
        ]
        np.testing.assert_allclose(np.exp(found[0, k]), exact, rtol=1e-10)


def test_the_local_error_falls_geometrically_with_the_radius(x64):
    """Against the widest neighbourhood, and against the exact joint filter until it is split."""
    seen = tables(8, 6)
    widest, numbers = model(8, radius=8)
    full = np.exp(markov.factorial_filter(widest, jnp.asarray(seen))[0])
    states, laws, _, _ = joint(numbers, seen)
    exact = marginals(states, laws)
    errors, off = [], []
    for radius in range(4):
        found = np.exp(markov.factorial_filter(model(8, radius=radius)[0], jnp.asarray(seen))[0])
        errors.append(np.abs(found - full).max())
        off.append(np.abs(found - exact).max())
    assert (np.diff(errors) < 0).all()
    assert errors[3] < 0.1 * errors[0]
    assert off[3] < off[0] / 2


def test_the_error_does_not_grow_with_the_number_of_chains(x64):
    """Mean local error of radius 1 against radius 3: 8 chains and 100 are off by the same."""
    errors = []
    for chains in (8, 100):
        seen = jnp.asarray(tables(chains, 5))
        near, far = (
            np.exp(markov.factorial_filter(model(chains, radius=r)[0], seen)[0]) for r in (1, 3)
        )
        local = np.abs(near - far)[..., 0].mean(0)
        errors.append((local.mean(), local.std() / np.sqrt(chains)))
    (a, error_a), (b, error_b) = errors
    assert abs(a - b) < 4 * np.hypot(error_a, error_b)


def test_a_finite_kernel_of_all_states_agrees(x64):
    """The factorial model as one hidden Markov model, by the room's own filter."""
    made, (initial, transition, _) = model(3, radius=0, blocks=[[0, 1, 2]])
    seen = tables(3, 4)
    kernel = markov.finite(jnp.asarray(transition[0]))
    law = initial[0]
    for v in (1, 2):
        kernel = kernel.beside(markov.finite(jnp.asarray(transition[v])))
        law = np.outer(law, initial[v]).ravel()
    value = seen[:, 0][:, :, :, None] + seen[:, 1][:, None, :, :]
    value = value.reshape(4, 8)
    start = core.Finite(jnp.log(jnp.asarray(law)))
    found = markov.factorial_filter(made, jnp.asarray(seen))[0][:, 0]
    for t in range(4):
        start = kernel.push(start) if t else start
        start, _ = markov.FiniteMessage(jnp.asarray(value[t])).weigh(start)
        np.testing.assert_allclose(found[t], start.log_probs, rtol=1e-10)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="every chain 0 to 3 once"):
        model(4, 0, blocks=[[0, 1], [2]])
    with pytest.raises(ValueError, match="chains 0 to 1"):
        markov.factorial(jnp.ones((2, 2)) / 2, jnp.ones((2, 2, 2)) / 2, [[0, 2]], radius=0)
    with pytest.raises(ValueError, match="radius must be 0"):
        model(4, -1)
    with pytest.raises(ValueError, match=r"shape \(T, 3, 2, 2\)"):
        markov.factorial_filter(model(4, 0)[0], jnp.zeros((5, 2, 2, 2)))
