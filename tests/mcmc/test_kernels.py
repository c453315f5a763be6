"""Transition kernels against hand counts: leapfrog, Hastings' ratio, trees. Laws: tests/laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, mcmc, target

SHAPE = 3.0
METRIC = core.dense(jnp.array([[0.5, 0.2], [0.2, 1.5]]))


def skewed(_, x):
    """Log of a gamma variable, and a normal one about its square."""
    return SHAPE * x[0] - jnp.exp(x[0]) - jnp.square(x[1] - jnp.square(x[0])) / 2


def test_leapfrog_is_reversible_and_of_second_order(key, x64):
    posterior = target.density(skewed, jnp.zeros(2))
    start = mcmc.mala().init(posterior, jnp.array([0.3, -0.2]))
    r = jax.random.normal(key, (2,))

    @partial(jax.jit, static_argnums=2)
    def walk(state, momentum, steps, length=1.0):
        def step(_, carry):
            return mcmc.leapfrog(posterior, METRIC, length / steps, *carry)

        return jax.lax.fori_loop(0, steps, step, (state, momentum))

    def error(steps):
        state, momentum = walk(start, r, steps)
        value = momentum @ momentum / 2 - state.log_prob - (r @ r / 2 - start.log_prob)
        return abs(float(value))

    state, _ = walk(*walk(start, r, 8), 8, -1.0)
    np.testing.assert_allclose(state.z, start.z, atol=1e-13)
    assert 1.9 < np.log2(error(64) / error(128)) < 2.1

    def flow(z):
        state, momentum = mcmc.leapfrog(
            posterior, METRIC, 0.3, mcmc.mala().init(posterior, z[:2]), z[2:]
        )
        return jnp.concatenate([state.z, momentum])

    volume = jnp.linalg.det(jax.jacfwd(flow)(jnp.concatenate([start.z, r])))
    np.testing.assert_allclose(volume, 1, rtol=1e-12)


def test_mala_accepts_by_hastings_ratio(key, x64):
    kernel, posterior = mcmc.mala(0.7, metric=METRIC), target.density(skewed, jnp.zeros(2))
    state = kernel.init(posterior, jnp.array([0.9, 0.4]))
    _, info = kernel.step(key, posterior, state)
    noise = jax.random.normal(jax.random.split(key)[0], (2,))

    def mean(state):
        return state.z + 0.7**2 / 2 * METRIC.matvec(state.gradient)

    def log_proposal(there, here):
        return -jnp.sum(jnp.square(METRIC.whiten(there.z - mean(here)))) / (2 * 0.7**2)

    new = kernel.init(posterior, mean(state) + 0.7 * METRIC.sqrt(noise))
    ratio = new.log_prob + log_proposal(state, new) - state.log_prob - log_proposal(new, state)
    np.testing.assert_allclose(info.acceptance, min(1, float(jnp.exp(ratio))), rtol=1e-10)


def leaves_by_hand(start, r, step_size, turns, max_depth):
    """How many leaves a trajectory of a standard normal law takes, all trees kept."""

    def leap(z, r, by):
        r = r - by / 2 * z
        z = z + by * r
        return z, r - by / 2 * z

    def turning(leaves):
        momenta = np.array([r for _, r in leaves])
        rho = momenta.sum(0) - (momenta[0] + momenta[-1]) / 2
        return momenta[0] @ rho <= 0 or momenta[-1] @ rho <= 0

    def grow(end, by, depth):
        """The leaves of a subtree from an end on, and whether any tree within turns."""
        if depth == 0:
            return [leap(*end, by)], False
        first, stop = grow(end, by, depth - 1)
        if stop:
            return first, True
        second, stop = grow(first[-1], by, depth - 1)
        return first + second, stop or turning(first + second)

    tree, count = [(start, r)], 0
    for depth in range(max_depth):
        forward = (turns >> depth) & 1
        by = step_size if forward else -step_size
        new, stop = grow(tree[-1] if forward else tree[0], by, depth)
        count += len(new)
        if stop:
            break
        tree = tree + new if forward else new[::-1] + tree
        if turning(tree):
            break
    return count


def test_nuts_walks_the_tree_of_the_recursion(x64):
    posterior = target.density(lambda _, x: -jnp.sum(x**2) / 2, jnp.zeros(3))
    kernel = mcmc.nuts(0.17)
    state = kernel.init(posterior, jnp.array([0.5, -1.0, 2.0]))
    found, expected = [], []
    step = jax.jit(lambda key: kernel.step(key, posterior, state)[1].gradients)
    for seed in range(40):
        key = jax.random.key(seed)
        key_momentum, _, key_turns = jax.random.split(key, 3)
        r = np.asarray(jax.random.normal(key_momentum, (3,)))
        turns = int(jax.random.bits(key_turns, dtype=jnp.uint32))
        found.append(int(step(key)))
        expected.append(leaves_by_hand(np.asarray(state.z), r, 0.17, turns, 10))
    assert found == expected
    assert len(set(found)) > 3


def test_a_cliff_is_a_divergence(key):
    posterior = target.density(lambda _, x: -1e6 * jnp.sum(x**4), jnp.zeros(2))
    for kernel in (mcmc.hmc(3, 1.0), mcmc.nuts(1.0)):
        state = kernel.init(posterior, jnp.ones(2))
        new, info = kernel.step(key, posterior, state)
        assert info.diverged
        np.testing.assert_array_equal(new.z, state.z)


@pytest.mark.parametrize("kernel", [mcmc.random_walk(30.0), mcmc.hmc(2, 30.0), mcmc.nuts(30.0)])
def test_a_density_that_is_nan_is_never_entered(kernel, key):
    posterior = target.density(lambda _, x: jnp.log(x).sum(), jnp.zeros(2))
    state = kernel.init(posterior, jnp.full(2, 1e-2))
    step = jax.jit(jax.vmap(lambda key: kernel.step(key, posterior, state)[0].log_prob))
    assert jnp.isfinite(step(jax.random.split(key, 64))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mcmc.hmc(0), "at least 1"),
        (lambda: mcmc.mala(-0.1), "must be positive"),
        (lambda: mcmc.random_walk(0.0), "must be positive"),
        (lambda: mcmc.nuts(max_depth=31), r"in \[1, 30\]"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
