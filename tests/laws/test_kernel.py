"""The law of every transition kernel: draws of a skewed, coupled law stay its draws."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, mcmc, target

SHAPE = 3.0
METRIC = core.dense(jnp.array([[0.5, 0.2], [0.2, 1.5]]))
KERNELS = {
    "random_walk": mcmc.random_walk(0.8, metric=METRIC),
    "mala": mcmc.mala(0.9, metric=METRIC),
    "hmc": mcmc.hmc(3, 0.6, metric=METRIC),
    "nuts": mcmc.nuts(0.6, metric=METRIC),
    "nuts_cut_short": mcmc.nuts(0.4, max_depth=2),
}


def skewed(_, x):
    """Log of a gamma variable, and a normal one about its square."""
    return SHAPE * x[0] - jnp.exp(x[0]) - jnp.square(x[1] - jnp.square(x[0])) / 2


def draw(key):
    key_gamma, key_normal = jax.random.split(key)
    x = jnp.log(jax.random.gamma(key_gamma, SHAPE))
    return jnp.array([x, x**2 + jax.random.normal(key_normal)])


def moments(z):
    x, y = z
    return jnp.array([x, x**2, jnp.exp(x), y, y**2, x * y, x > 1.2, (x > 1) & (y > 1)])


@pytest.mark.parametrize("name", KERNELS)
def test_exact_draws_stay_exact(name):
    """Means before and after one transition, by pairs: a wrong acceptance moves them."""
    kernel, posterior = KERNELS[name], target.density(skewed, jnp.zeros(2))

    @jax.jit
    @jax.vmap
    def pair(key):
        key_start, key_step = jax.random.split(key)
        z = draw(key_start)
        state, _ = kernel.step(key_step, posterior, kernel.init(posterior, z))
        return moments(z), moments(state.z)

    before, after = pair(jax.random.split(jax.random.key(5), 60_000))
    change = np.asarray(after - before, np.float64)
    score = change.mean(0) / (change.std(0) / np.sqrt(len(change)))
    assert np.abs(score).max() < 4
    assert np.mean(np.any(change != 0, axis=1)) > 0.2, "the chain must move"


def several(count):
    """Starts of chains and their keys."""
    keys = jax.random.split(jax.random.key(7), count)
    return keys, jax.vmap(draw)(jax.random.split(jax.random.key(8), count))


def step_of(kernel, posterior):
    return lambda key, z: kernel.step(key, posterior, kernel.init(posterior, z))


@pytest.mark.parametrize("name", KERNELS)
def test_chains_over_devices_are_those_of_one(name):
    step = jax.vmap(step_of(KERNELS[name], target.density(skewed, jnp.zeros(2))))
    keys, z = several(16)
    mesh = jax.make_mesh((8,), ("chains",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("chains")
    spread = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec))(keys, z)
    chex.assert_trees_all_close(spread, jax.jit(step)(keys, z), rtol=1e-5, atol=1e-6)


def test_chains_under_pmap_are_those_of_one():
    step = step_of(KERNELS["hmc"], target.density(skewed, jnp.zeros(2)))
    keys, z = several(8)
    chex.assert_trees_all_close(
        jax.pmap(step)(keys, z), jax.jit(jax.vmap(step))(keys, z), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_has_the_derivative_of_differences(name, x64):
    """With respect to the start, in forward mode; the loops of known length in reverse mode too."""
    posterior = target.density(skewed, jnp.zeros(2))
    keys, z = several(6)
    along, small = jnp.array([0.6, -0.8]), 1e-6

    def move(key, z):
        return step_of(KERNELS[name], posterior)(key, z)[0].z

    @jax.jit
    @jax.vmap
    def slopes(key, z):
        exact = jax.jvp(lambda z: move(key, z), (z,), (along,))[1]
        ends = move(key, z + small * along), move(key, z - small * along)
        return exact, (ends[0] - ends[1]) / (2 * small)

    exact, differences = slopes(keys, z)
    # Central differences err by small^2 and by rounding over small, 1e-10.
    np.testing.assert_allclose(exact, differences, rtol=1e-6, atol=1e-7)
    if not name.startswith("nuts"):
        back = jax.jit(jax.vmap(jax.jacrev(move, 1)))(keys, z)
        np.testing.assert_allclose(back @ along, exact, rtol=1e-9, atol=1e-11)
