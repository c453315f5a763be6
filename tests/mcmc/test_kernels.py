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


PRECISION = np.array([1.0, 4.0, 0.25])


def transition_by_hand(start, r, step_size, halves, leaves, max_depth):
    """A transition of the no-U-turn sampler on a normal law, all trees kept."""

    def leap(z, r, by):
        r = r - by / 2 * PRECISION * z
        z = z + by * r
        return z, r - by / 2 * PRECISION * z

    def energy(leaf):
        return leaf[1] @ leaf[1] / 2 + PRECISION @ leaf[0] ** 2 / 2

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

    tree, count, acceptance = [(start, r)], 0, 0.0
    chosen, weight = tree[0], 1.0
    for depth in range(max_depth):
        forward = halves[depth, 0] < 0.5
        by = step_size if forward else -step_size
        new, stop = grow(tree[-1] if forward else tree[0], by, depth)
        total, one = 0.0, None
        for i, leaf in enumerate(new):
            ratio = np.exp(energy((start, r)) - energy(leaf))
            total, acceptance = total + ratio, acceptance + min(1, ratio)
            one = leaf if leaves[depth, i] < ratio / total else one
            count += 1
        if stop:
            break
        chosen = one if halves[depth, 1] < total / weight else chosen
        weight += total
        tree = tree + new if forward else new[::-1] + tree
        if turning(tree):
            break
    return chosen[0], energy(chosen), acceptance / count, count


@pytest.mark.parametrize(("step_size", "max_depth"), [(0.17, 10), (0.6, 10), (0.6, 2), (0.3, 4)])
def test_nuts_walks_the_tree_of_the_recursion(step_size, max_depth, x64):
    """Leaf by leaf, with the draws of leaves and halves by the same uniform numbers."""
    posterior = target.density(lambda _, x: -jnp.sum(PRECISION * x**2) / 2, jnp.zeros(3))
    kernel = mcmc.nuts(step_size, max_depth=max_depth)
    state = kernel.init(posterior, jnp.array([0.5, -1.0, 2.0]))

    @jax.jit
    @jax.vmap
    def both(key):
        key_momentum, key_walk = jax.random.split(key)

        def doubling(depth):
            key_half, key = jax.random.split(jax.random.fold_in(key_walk, depth))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key_half, jnp.arange(64))
            return jax.random.uniform(key, (2,)), jax.vmap(jax.random.uniform)(keys)

        halves, leaves = jax.vmap(doubling)(jnp.arange(7))
        new, info = kernel.step(key, posterior, state)
        found = new.z, info.energy, info.acceptance, info.gradients
        return found, (jax.random.normal(key_momentum, (3,)), halves, leaves)

    found, drawn = both(jax.random.split(jax.random.key(0), 300))
    assert int(found[3].max()) < 128
    hands = [
        transition_by_hand(np.asarray(state.z), r, step_size, halves, leaves, max_depth)
        for r, halves, leaves in zip(*map(np.asarray, drawn), strict=True)
    ]
    z, energy, acceptance, count = map(np.array, zip(*hands, strict=True))
    np.testing.assert_array_equal(found[3], count)
    np.testing.assert_allclose(found[0], z, atol=1e-10)
    np.testing.assert_allclose(found[1], energy, rtol=1e-10)
    np.testing.assert_allclose(found[2], acceptance, rtol=1e-10)
    assert len(set(count)) > 1


def test_random_walk_and_hmc_by_hand(x64):
    """Proposal, ratio, energy and counts, of accepted and of rejected steps."""
    posterior = target.density(skewed, jnp.zeros(2))
    metric = core.dense(jnp.array([[0.5, 0.2], [0.2, 1.5]]))
    walk, trajectory = mcmc.random_walk(1.3, metric=metric), mcmc.hmc(3, 0.7, metric=metric)
    state = walk.init(posterior, jnp.array([0.9, 0.4]))
    start = trajectory.init(posterior, state.z)
    taken = set()
    for seed in range(12):
        key = jax.random.key(seed)
        key_noise, key_accept = jax.random.split(key)
        noise, u = jax.random.normal(key_noise, (2,)), jax.random.uniform(key_accept)
        z = state.z + 1.3 * metric.factor @ noise
        ratio = float(jnp.exp(posterior.log_prob(z) - state.log_prob))
        new, info = walk.step(key, posterior, state)
        np.testing.assert_allclose(info.acceptance, min(1, ratio), rtol=1e-12)
        np.testing.assert_allclose(new.z, z if u < ratio else state.z, rtol=1e-12)
        np.testing.assert_allclose(info.energy, -posterior.log_prob(new.z), rtol=1e-12)
        assert int(info.gradients) == 0
        end, r = start, noise
        for _ in range(3):
            end, r = mcmc.leapfrog(posterior, metric, 0.7, end, r)
        before, after = noise @ noise / 2 - start.log_prob, r @ r / 2 - end.log_prob
        accept = min(1, float(jnp.exp(before - after)))
        new, info = trajectory.step(key, posterior, start)
        np.testing.assert_allclose(info.acceptance, accept, rtol=1e-9)
        np.testing.assert_allclose(new.z, end.z if u < accept else start.z, rtol=1e-9)
        np.testing.assert_allclose(info.energy, after if u < accept else before, rtol=1e-12)
        assert (int(info.gradients), bool(info.diverged)) == (3, False)
        taken |= {("walk", bool(u < ratio)), ("trajectory", bool(u < accept))}
    assert len(taken) == 4, "both kinds must be taken and left"


def test_goals_are_those_of_the_papers():
    kernels = mcmc.random_walk(), mcmc.mala(), mcmc.hmc(2), mcmc.nuts()
    assert [kernel.goal for kernel in kernels] == [0.234, 0.574, 0.8, 0.8]
    assert [kernel.probe() for kernel in kernels[2:]] == [mcmc.mala()] * 2


def test_a_cliff_is_a_divergence(key):
    posterior = target.density(lambda _, x: -1e6 * jnp.sum(x**4), jnp.zeros(2))
    for kernel in (mcmc.hmc(3, 1.0), mcmc.nuts(1.0)):
        state = kernel.init(posterior, jnp.ones(2))
        new, info = kernel.step(key, posterior, state)
        assert info.diverged
        np.testing.assert_array_equal(new.z, state.z)
        assert int(info.gradients) == (3 if isinstance(kernel, mcmc.HMC) else 1), "trees end there"
    # Some 500 nats are no divergence, some 5,000 are; neither is accepted.
    posterior = target.density(lambda _, x: -2e3 * jnp.sum(x**2) / 2, jnp.zeros(1))
    for size, diverged in ((0.047, False), (0.06, True)):
        kernel = mcmc.hmc(1, size)
        state = kernel.init(posterior, jnp.ones(1))
        steep = jax.vmap(lambda key: kernel.step(key, posterior, state)[1])  # noqa: B023
        infos = steep(jax.random.split(key, 8))
        assert (infos.diverged == diverged).all()
        assert infos.acceptance.max() < 1e-6


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
