"""The law of every family: its draws have its density, whose mass is one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, markov, vi

DIM = 2


def structured(key):
    """Paths of two times and one number."""
    del key
    gaussian = core.gaussian(jnp.zeros(1), core.dense(jnp.eye(1)))
    move = markov.linear_gaussian(jnp.array([[0.8]]), core.dense(0.5 * jnp.eye(1)))
    potentials = vi.gaussian_potentials(jnp.array([[0.4], [-1.0]]), jnp.array([[2.0], [0.7]]))
    return vi.structured_posterior(gaussian, move, potentials)


FAMILIES = {
    "mean_field": lambda key: vi.mean_field(DIM),
    "full_rank": lambda key: vi.full_rank(DIM),
    "low_rank": lambda key: vi.low_rank(key, DIM, 1, width=0.7),
    "rank_one": lambda key: vi.rank_one(DIM, direction=0.8),
    "planar": lambda key: vi.planar_flow(key, DIM, 3),
    "radial": lambda key: vi.radial_flow(key, DIM, 3),
    "affine_coupling": lambda key: vi.affine_coupling_flow(key, DIM, 3, width=8),
    "spline_coupling": lambda key: vi.spline_coupling_flow(key, DIM, 3, width=8, bins=4),
    "autoregressive": lambda key: vi.autoregressive_flow(key, DIM, 3, width=8),
    "residual": lambda key: vi.residual_flow(key, DIM, 3, width=8),
    "structured": structured,
}
each = pytest.mark.parametrize("name", FAMILIES)


def made(name, shift=0.1):
    """A family away from where it starts."""
    family = FAMILIES[name](jax.random.key(0))
    if name == "structured":
        return family
    leaves, tree = jax.tree.flatten(family)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [a + shift * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def statistics(x):
    a, b = x.reshape(DIM)
    return jnp.array([1.0, a, b, a * b, a > 0.5, (a > 0) & (b < 0.3)])


@each
def test_draws_have_its_density(name):
    """Mass and means by weights of wide draws are those of the family's own draws."""
    family, count = made(name), 40_000

    @jax.jit
    def both(family):
        keys = jax.random.split(jax.random.key(2), count)
        own = jax.vmap(lambda key: statistics(family.sample(key)))(keys)
        shape = jax.eval_shape(family.sample, jax.random.key(0)).shape
        wide = 2 * jax.random.t(jax.random.key(3), 3.0, (count, *shape))
        log_wide = jax.scipy.stats.t.logpdf(wide / 2, 3.0) - jnp.log(2.0)
        log_w = jax.vmap(family.log_prob)(wide) - log_wide.reshape(count, -1).sum(1)
        return own, jnp.exp(log_w)[:, None] * jax.vmap(statistics)(wide)

    own, weighed = (np.asarray(a, np.float64) for a in both(family))
    error = np.sqrt((own.var(0) + weighed.var(0)) / count)
    assert np.abs((own.mean(0) - weighed.mean(0)) / error).max() < 4
    assert (weighed.std(0)[0] / np.sqrt(count)) < 0.02, "the weights must tell"


@each
def test_a_draws_density_is_that_of_its_place(name, x64):
    family = made(name)
    keys = jax.random.split(jax.random.key(4), 64)
    x, log_prob = jax.vmap(family.sample_and_log_prob)(keys)
    chex.assert_trees_all_close(jax.vmap(family.sample)(keys), x, rtol=1e-12)
    # residual flows are inverted by iteration, to 1e-9 of their numbers
    chex.assert_trees_all_close(jax.vmap(family.log_prob)(x), log_prob, rtol=1e-7, atol=1e-8)


@each
def test_over_devices_it_is_that_of_one(name):
    family, keys = made(name), jax.random.split(jax.random.key(5), 16)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    draw = jax.vmap(family.sample_and_log_prob)
    spread = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=spec, out_specs=spec))(keys)
    chex.assert_trees_all_close(spread, jax.jit(draw)(keys), rtol=2e-5, atol=1e-5)


@each
def test_all_its_numbers_have_slopes_and_others_compile_nothing(name):
    def bound(family, key):
        x, log_prob = family.sample_and_log_prob(key)
        return log_prob + jnp.sum(jnp.square(x - 1)) + jnp.prod(x)

    chex.clear_trace_counter()
    slopes = jax.jit(jax.grad(chex.assert_max_traces(bound, 1)))
    first, other = made(name), made(name, 0.2)
    found = slopes(first, jax.random.key(6))
    chex.assert_tree_all_finite((found, slopes(other, jax.random.key(7))))
    if name != "structured":  # it holds what was derived of its numbers
        assert all(bool(jnp.any(a != 0)) for a in jax.tree.leaves(found))
