"""Kernels that only draw and have a density, guided by surrogates, against sums over a grid."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from jaxinf import core, markov, smc

GRID = jnp.linspace(-6, 6, 241)[:, None]
Y = jnp.array([1.0, 0.0, 3.0, 4.0, 2.0])[:, None]


def two_bumps(width, x):
    """Not Gaussian, with tails lighter than the surrogate's."""
    bumps = dist.Normal(0.8 * x[:, None] + jnp.array([[-0.6, 0.6]]), width)
    return dist.MixtureSameFamily(dist.Categorical(probs=jnp.full((1, 2), 0.5)), bumps).to_event(1)


def normal(width, x):
    return dist.Normal(0.8 * x, width).to_event(1)


def counts(_, x):
    return dist.Poisson(jnp.exp(x)).to_event(1)


def model(steps=two_bumps, width=0.3):
    """Poisson counts of a hidden walk."""
    variance = width**2 + (0.36 if steps is two_bumps else 0)
    walk = markov.guide(
        markov.conditional(steps, jnp.asarray(width)),
        markov.linear_gaussian(0.8 * jnp.eye(1), core.dense(variance * jnp.eye(1))),
    )
    # exp(x) about 0.5, and a variance a little larger than its own
    slope = np.exp(0.5)
    see = markov.guide(
        markov.conditional(counts),
        markov.linear_gaussian(
            slope * jnp.eye(1), core.dense(3 * slope * jnp.eye(1)), slope * 0.5 * jnp.ones(1)
        ),
    )
    return markov.state_space(core.gaussian(jnp.zeros(1), core.white()), walk, see)


def on_the_grid(space, y=Y):
    """The evidence, and the mean of the last state, by sums."""
    step = GRID[1, 0] - GRID[0, 0]
    log_k = jax.vmap(lambda x: jax.vmap(lambda y: space.transition.log_prob(x, y))(GRID))(GRID)
    seen = jax.vmap(lambda now: jax.vmap(lambda x: space.emission.log_prob(x, now))(GRID))(y)
    log_mass = jax.vmap(space.initial.log_prob)(GRID) + seen[0]
    for now in seen[1:]:
        log_mass = jax.nn.logsumexp(log_mass[:, None] + log_k, axis=0) + jnp.log(step) + now
    mass = jnp.exp(log_mass - log_mass.max())
    return jax.nn.logsumexp(log_mass) + jnp.log(step), jnp.sum(mass * GRID[:, 0]) / mass.sum()


def test_a_surrogates_draws_carry_the_ratio_of_densities(x64):
    """E[w] is (k h)(x) over what the surrogate claims, whatever message guides."""
    walk = model().transition
    h = markov.Quadratic(jnp.asarray(0.3), jnp.array([1.2]), jnp.array([[0.7]]))
    x = jnp.array([0.4])
    message, guided = walk.pullback(h)
    y, log_w = jax.vmap(guided.move, (0, None))(jax.random.split(jax.random.key(0), 10_000), x)
    density = jnp.exp(jax.vmap(lambda y: walk.log_prob(x, y) + h(y))(GRID))
    step = GRID[1, 0] - GRID[0, 0]
    w = jnp.exp(log_w + message(x))
    for values, wanted in (
        (w, jnp.sum(density)),
        (w * y[:, 0], jnp.sum(density * GRID[:, 0])),
        (w * y[:, 0] ** 2, jnp.sum(density * GRID[:, 0] ** 2)),
    ):
        error = values.std() / np.sqrt(values.size)
        assert jnp.abs(values.mean() - wanted * step) < 4 * error < 0.1 * wanted * step


def test_guided_paths_have_the_evidence_as_mean_weight(key, x64):
    space = model()
    back = markov.backward_filter(space, Y)
    keys = jax.random.split(key, 10_000)
    paths, log_w = jax.vmap(lambda key: markov.forward_guide(key, space, back))(keys)
    wanted, mean = on_the_grid(space)
    w = jnp.exp(log_w - wanted)
    error = w.std() / np.sqrt(w.size)
    assert jnp.abs(w.mean() - 1) < 4 * error < 0.1
    apart = w * (paths[:, -1, 0] - mean)
    assert jnp.abs(apart.mean()) < 4 * apart.std() / np.sqrt(w.size) < 0.1


def test_an_equal_surrogate_leaves_no_weight(key, x64):
    space = model(normal, 0.5)
    back = markov.backward_filter(space, Y)
    see = space.emission
    space = markov.state_space(space.initial, space.transition, see.surrogate)
    keys = jax.random.split(key, 50)
    _, log_w = jax.vmap(lambda key: markov.forward_guide(key, space, back))(keys)
    chex.assert_trees_all_close(log_w, jnp.full(50, back.log_evidence), atol=1e-10)


@pytest.mark.parametrize("proposal", ["optimal", "guided", "auxiliary"])
def test_particles_are_guided_by_surrogates(proposal, key):
    space = model()
    chosen = {
        "optimal": smc.optimal,
        "guided": lambda: smc.guided(markov.backward_filter(space, Y)),
        "auxiliary": lambda: smc.auxiliary(_look, smc.optimal()),
    }[proposal]()
    runs = jax.vmap(
        lambda key: smc.particle_filter(key, space, Y, particles=64, proposal=chosen).log_evidence
    )(jax.random.split(key, 512))
    wanted, _ = on_the_grid(space)
    ratio = jnp.exp(runs - wanted)
    assert jnp.abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(512) < 0.1


def _look(transition, emission, x, y):
    return emission.log_prob(0.8 * x, y)


def test_kernels_over_time_and_composites_are_guided(key, x64):
    """Steps of different widths; two steps as one composite."""
    widths = jnp.array([0.3, 0.5])
    surrogate = markov.linear_gaussian(0.8 * jnp.eye(1), core.dense(0.7 * jnp.eye(1)))
    kernels = [markov.guide(markov.conditional(two_bumps, w), surrogate) for w in widths]
    h = markov.Quadratic(jnp.asarray(0.0), jnp.array([0.5]), jnp.array([[0.4]]))
    x = jnp.array([-0.2])
    message, guided = markov.compose(*kernels).pullback(h)
    _, log_w = jax.vmap(guided.move, (0, None))(jax.random.split(key, 10_000), x)
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *kernels)
    space = markov.state_space(
        core.gaussian(jnp.zeros(1), core.white()), markov.over_time(stacked), model().emission
    )
    back = markov.backward_filter(space, Y[:3])
    assert jnp.isfinite(markov.forward_guide(key, space, back)[1])
    step = GRID[1, 0] - GRID[0, 0]

    def ends(y):
        return jax.vmap(lambda z: kernels[1].log_prob(y, z) + h(z))(GRID)

    last = jnp.exp(jax.vmap(ends)(GRID))
    first = jnp.exp(jax.vmap(lambda y: kernels[0].log_prob(x, y))(GRID))
    wanted = first @ last.sum(axis=1) * step**2
    w = jnp.exp(log_w + message(x))
    assert jnp.abs(w.mean() - wanted) < 4 * w.std() / np.sqrt(w.size) < 0.1 * wanted


def test_side_by_side(key, x64):
    """Two walks in one state: the weights multiply."""
    one = model()
    both = markov.state_space(
        markov.Both(one.initial, one.initial),
        markov.tensor(one.transition, one.transition),
        markov.tensor(one.emission, one.emission),
    )
    back = markov.backward_filter(both, (Y, Y[::-1]))
    keys = jax.random.split(key, 10_000)
    log_w = jax.vmap(lambda key: markov.forward_guide(key, both, back)[1])(keys)
    w = jnp.exp(log_w - on_the_grid(one)[0] - on_the_grid(one, Y[::-1])[0])
    assert jnp.abs(w.mean() - 1) < 4 * w.std() / np.sqrt(w.size) < 0.3


def test_a_law_of_many_states_is_refused():
    kernel = markov.conditional(lambda _, x: dist.Normal(x, 1.0))
    with pytest.raises(ValueError, match=r"shape \(2,\).*to_event\(1\)"):
        kernel.log_prob(jnp.zeros(2), jnp.zeros(2))


def test_filters_ask_for_exact_kernels():
    with pytest.raises(TypeError, match="Guide"):
        markov.filter(model(), Y)
