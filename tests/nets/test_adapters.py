import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxinf import nets


class Linen(linen.Module):
    width: int = 8

    @linen.compact
    def __call__(self, x, t, cond):
        h = linen.Dense(self.width)(x) + t
        return linen.Dense(len(x))(jnp.tanh(h if cond is None else h * cond))


class Nnx(nnx.Module):
    def __init__(self, width, rngs):
        self.first = nnx.Linear(3, width, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs)])
        self.second = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x, t, cond):
        h = jnp.tanh(self.first(x) + t)
        for layer in self.layers:
            h = jnp.tanh(layer(h))
        return self.second(h if cond is None else h * cond)


class Keeping(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x, t, cond):
        return self.norm(x)


def test_linen_equals_the_module(key):
    x, module = jnp.arange(3.0), Linen()
    net = nets.from_linen(module)
    for cond in (None, 2.0):
        params = net.init(key, x, cond)
        expected = module.apply(module.init(key, x, 0.5, cond), x, 0.5, cond)
        np.testing.assert_allclose(net.apply(params, x, 0.5, cond), expected, rtol=1e-6)


def test_nnx_equals_the_module(key):
    x, module = jnp.arange(3.0), Nnx(8, nnx.Rngs(key))
    net = nets.from_nnx(lambda rngs: Nnx(8, rngs))
    params = net.init(key, jax.ShapeDtypeStruct((3,), jnp.float32))
    for cond in (None, 2.0):
        np.testing.assert_allclose(net.apply(params, x, 0.5, cond), module(x, 0.5, cond), rtol=1e-6)


@pytest.mark.parametrize(
    "build",
    [lambda: nets.from_linen(Linen(8)), lambda: nets.from_nnx(lambda rngs: Nnx(8, rngs))],
    ids=["linen", "nnx"],
)
def test_building_again_traces_nothing_anew(key, build):
    chex.clear_trace_counter()

    @jax.jit(static_argnums=0)
    @chex.assert_max_traces(n=1)
    def run(apply, params, x):
        return jax.grad(lambda p: jnp.sum(apply(p, x, 0.1, None) ** 2))(params)

    params = build().init(key, jnp.ones(3))
    for _ in range(2):
        gradients = run(build().apply, params, jnp.ones(3))
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    assert build().apply == build().apply
    assert hash(build().apply) == hash(build().apply)


def test_other_settings_are_unequal():
    assert nets.from_linen(Linen(8)).apply != nets.from_linen(Linen(9)).apply
    a, b = (nets.from_nnx(lambda rngs, w=w: Nnx(w, rngs)).apply for w in (8, 9))
    assert a != b


def test_nnx_under_vmap_over_seeds(key):
    net = nets.from_nnx(lambda rngs: Nnx(8, rngs))
    keys = jax.random.split(key, 3)
    params = jax.vmap(net.init, (0, None))(keys, jax.ShapeDtypeStruct((3,), jnp.float32))
    x = jnp.ones((3, 3))
    mapped = jax.jit(jax.vmap(net.apply, (0, 0, None, None)))(params, x, 0.1, None)
    each = [net.apply(net.init(k, x[0]), x[0], 0.1, None) for k in keys]
    np.testing.assert_allclose(mapped, jnp.stack(each), rtol=1e-5)


def test_bad_modules_name_the_mend(key):
    with pytest.raises(TypeError, match=r"flax\.linen\.(module\.)?Module"):
        nets.from_linen(lambda x, t, cond: x)
    with pytest.raises(TypeError, match="rngs=rngs"):
        nets.from_nnx(lambda rngs: 3)
    with pytest.raises(ValueError, match="BatchStat besides parameters"):
        nets.from_nnx(lambda rngs: Keeping(rngs))

    class Statistics(linen.Module):
        @linen.compact
        def __call__(self, x, t, cond):
            return linen.BatchNorm(use_running_average=True)(x)

    class Listing(linen.Module):
        widths: object

    class Narrow(linen.Module):
        def __call__(self, x, t, cond):
            return x[:1]

    with pytest.raises(ValueError, match="batch_stats besides params"):
        nets.from_linen(Statistics()).init(key, jnp.ones(3))
    with pytest.raises(TypeError, match="tuples for lists"):
        nets.from_linen(Listing(jnp.ones(3)))
    with pytest.raises(ValueError, match="its input's shape"):
        nets.from_linen(Narrow()).apply({}, jnp.ones(3), 0.1, None)
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        nets.from_linen(Linen()).init(jax.random.PRNGKey(0), jnp.ones(3))
