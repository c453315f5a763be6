"""Guides that learn from dreams, against a posterior that is known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from jaxinf import grad, vi

NOISE = 0.5


def model(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, NOISE), obs=x)


def guide(x):
    slope, offset = numpyro.param("slope", 0.0), numpyro.param("offset", 0.3)
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(slope * x + offset, scale))


def pair_at(params, law=guide, x=0.0):
    return vi.pair(grad.annotate(model, x), grad.annotate(law, x, params=params))


BEST = {
    "slope": jnp.array(1 / (1 + NOISE**2)),
    "offset": jnp.array(0.0),
    "scale": jnp.log(jnp.sqrt(NOISE**2 / (1 + NOISE**2))),
}


def slopes(params, count=100_000):
    def loss(params, key):
        return vi.sleep("x", draws=1)(key, pair_at(params))[0]

    keys = jax.random.split(jax.random.key(0), count)
    found = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, keys)
    return {name: np.asarray(a, np.float64) for name, a in found.items()}


def test_at_the_posterior_dreams_teach_nothing():
    for found in slopes(BEST).values():
        assert abs(found.mean()) < 4 * found.std() / np.sqrt(found.size)


def test_slopes_are_those_of_the_cross_entropy():
    """Of E[-log N(z; a x + b, s^2)] with x = z + noise, by hand at a = 0.2, b = 0.3, s = 0.8."""
    a, b, s = 0.2, 0.3, 0.8
    second = 1 + NOISE**2
    square = 1 - 2 * a + a**2 * second + b**2  # of z - a x - b
    wanted = {
        "slope": (a * second - 1) / s**2,
        "offset": b / s**2,
        "scale": 1 - square / s**2,
    }
    found = slopes({"slope": jnp.array(a), "offset": jnp.array(b), "scale": jnp.log(s)})
    for name, value in wanted.items():
        assert abs(found[name].mean() - value) < 4 * found[name].std() / np.sqrt(found[name].size)


def test_a_guide_learns_the_posterior():
    fit = vi.svi(
        jax.random.key(0), model, guide, jnp.array(0.0), objective=vi.sleep("x", draws=64),
        steps=1500, optimizer=optax.adam(optax.cosine_decay_schedule(3e-2, 1500)),
    )  # fmt: skip
    # its last steps of Adam forget 64 dreams' noise of order 1/8 over some hundreds of steps
    chex.assert_trees_all_close(fit.params, BEST, atol=0.02)
    chex.assert_trees_all_equal(jnp.sum(fit.info.skipped), 0)


def test_what_is_wrong_is_said(key):
    with pytest.raises(ValueError, match="names of the observed"):
        vi.sleep()
    with pytest.raises(ValueError, match="at least 1"):
        vi.sleep("x", draws=0)
    with pytest.raises(ValueError, match=r"names \['y'\]"):
        vi.sleep("y")(key, pair_at(BEST))
    with pytest.raises(ValueError, match="1 arguments"):
        vi.sleep("x", "z")(key, pair_at(BEST))
    with pytest.raises(TypeError, match="cannot dream"):
        vi.sleep("x")(key, vi.pair(grad.annotate(model, 0.0), vi.mean_field(1)))


def rooted(x):
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(jnp.sqrt(z), jnp.exp(w)), obs=x)


def halves(x):
    numpyro.sample("z", dist.Normal(x, 1.0))
    numpyro.sample("w", dist.Normal(0.0, 1.0))


def test_terms_that_are_not_finite_are_named(key):
    """A root of what is negative half of the time, and no other site."""
    pair = vi.pair(grad.annotate(rooted, 0.0), grad.annotate(halves, 0.0))
    found = vi.non_finite(key, pair, 1000)
    assert set(found) == {"p: x"}
    assert abs(found["p: x"] - 500) < 4 * np.sqrt(250)


def cusp(_, x):
    return jnp.sum(jnp.where(x > 0, x, jnp.sqrt(jnp.abs(jnp.minimum(x, 0)))) * 0)


def test_gradients_that_are_not_finite_are_counted(key):
    """Where a value is finite, and its derivative is 0 times infinity."""
    from jaxinf import target

    found = vi.non_finite(key, vi.pair(target.density(cusp, jnp.zeros(1)), vi.mean_field(1)), 1000)
    assert set(found) == {"gradient"}
    assert abs(found["gradient"] - 500) < 4 * np.sqrt(250)
    assert not vi.non_finite(key, pair_at(BEST), 100)
