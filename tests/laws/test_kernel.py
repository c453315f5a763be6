"""The law of every transition kernel: draws of a skewed, coupled law stay its draws."""

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
