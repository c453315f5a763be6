import functools
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jaxinf_kernels.attention import attention

from jaxinf import nets

NETWORKS = {
    "mlp": (partial(nets.mlp, 8, 2), (3,)),
    "unet": (partial(nets.unet, 8, multipliers=[1, 2], attend=attention), (4, 2, 2)),
    "transformer": (partial(nets.transformer, 16, 2, heads=2), (4, 6, 2)),
}
DEPTH = 24
"""More roundings in a row than any of these networks has layers."""

each_network = pytest.mark.parametrize("name", NETWORKS)


def example(shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def moved(params, scale=0.2, seed=1):
    """Parameters away from the start, so that layers that begin at zero do something."""
    rng = np.random.default_rng(seed)

    def move(p):
        return jnp.asarray(np.asarray(p) + scale * rng.normal(size=p.shape), p.dtype)

    return jax.tree.map(move, params)


@functools.cache
def built(name):
    """A network with three classes, its compiled function of (x, t, cond), and parameters."""
    make, shape = NETWORKS[name]
    net = make(classes=3)
    params = net.init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return net, jax.jit(net.apply), params, shape


@each_network
def test_init_depends_on_key_and_shape_alone_and_starts_at_zero(name):
    net, apply, params, shape = built(name)
    chex.assert_trees_all_equal(params, net.init(jax.random.key(0), example(shape), cond=2))
    other = net.init(jax.random.key(1), example(shape))
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (params, other)), strict=True))
    np.testing.assert_array_equal(apply(params, example(shape), 0.3, 1), jnp.zeros(shape))


@each_network
def test_output_depends_on_input_time_and_class(name):
    _, apply, params, shape = built(name)
    params, x = moved(params), example(shape)
    y = apply(params, x, 0.3, 1)
    chex.assert_equal_shape([x, y])
    others = [(example(shape, 5), 0.3, 1), (x, -0.2, 1), (x, 0.3, 2), (x, 0.3, 3)]
    for other in others:
        assert np.sqrt(np.mean((apply(params, *other) - y) ** 2)) > 1e-3 * np.std(y)
    # A class beyond the table shows, where it is traced, as NaN.
    for cond in (4, -1):
        assert np.all(np.isnan(apply(params, x, 0.3, cond)))


@each_network
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_parameters_are_float32_and_the_output_is_like_the_input(name, dtype, x64):
    make, shape = NETWORKS[name]
    x, t = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((), jnp.float64)
    for net in (make(), make(dtype=jnp.bfloat16)):
        params = jax.eval_shape(net.init, jax.random.key(0), x)
        assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        assert jax.eval_shape(net.apply, params, x, t).dtype == dtype


@each_network
def test_building_again_traces_nothing_anew(name):
    chex.clear_trace_counter()

    @jax.jit(static_argnums=0)
    @chex.assert_max_traces(n=1)
    def run(apply, params, x):
        return apply(params, x, 0.1, 2)

    net, _, params, shape = built(name)
    make, _ = NETWORKS[name]
    again = make(classes=3)
    for each in (net, again):
        run.lower(each.apply, params, example(shape))
    assert net == again
    assert hash(net.init) == hash(again.init)
    assert net != make(classes=4)


@each_network
def test_bfloat16_computes_close_to_float32(name):
    _, apply, params, shape = built(name)
    low = jax.jit(NETWORKS[name][0](classes=3, dtype=jnp.bfloat16).apply)
    arguments = moved(params), example(shape), 0.3, 1
    products = re.findall(r"dot_general .*: \((.*?)\) ->", low.lower(*arguments).as_text())
    assert products
    for operands in products:
        assert operands.count("bf16") == 2
    exact, rounded = apply(*arguments), low(*arguments)
    error = np.sqrt(np.mean((exact - rounded) ** 2) / np.mean(exact**2))
    assert error < DEPTH * float(jnp.finfo(jnp.bfloat16).eps)


@each_network
def test_forward_and_reverse_mode_agree_and_remat_changes_nothing(name):
    def derivatives(net, params, x, v):
        def function(x):
            return net.apply(params, x, 0.3, 1)

        forward = jax.jvp(function, (x,), (v,))[1]
        reverse = jax.vjp(lambda p, x: net.apply(p, x, 0.3, 1), params, x)[1](v)
        return reverse, jnp.vdot(v, forward), jnp.vdot(reverse[1], v)

    net, _, params, shape = built(name)
    again = NETWORKS[name][0](classes=3, remat=True)
    arguments = moved(params), example(shape), example(shape, 3)
    plain, recomputed = (jax.jit(partial(derivatives, n))(*arguments) for n in (net, again))
    np.testing.assert_allclose(plain[1], plain[2], rtol=1e-4)
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(plain))
    eps = np.finfo(np.float32).eps
    chex.assert_trees_all_close(plain, recomputed, atol=DEPTH * 16 * eps * scale)
    assert "remat" in str(jax.make_jaxpr(again.apply)(params, example(shape), 0.3, 1))
    assert "remat" not in str(jax.make_jaxpr(net.apply)(params, example(shape), 0.3, 1))


def test_a_scan_over_blocks_is_the_blocks_one_by_one():
    x, eps = example((4, 6, 2)), np.finfo(np.float32).eps
    plain = nets.transformer(16, 3, heads=2)
    params = moved(jax.jit(plain.init)(jax.random.key(0), x))
    blocks = [params.pop(f"block_{i}") for i in range(3)]
    stacked = params | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}
    again = params | {f"block_{i}": block for i, block in enumerate(blocks)}
    right = jax.jit(plain.apply)(again, x, 0.3, None)
    for remat in (False, True):
        looped = nets.transformer(16, 3, heads=2, scan=True, remat=remat)
        chex.assert_trees_all_equal_shapes(
            stacked, jax.eval_shape(looped.init, jax.random.key(0), x)
        )
        out = jax.jit(looped.apply)(stacked, x, 0.3, None)
        np.testing.assert_allclose(out, right, atol=DEPTH * 16 * eps)


@each_network
def test_a_sharded_batch_is_a_loop(name):
    net, apply, params, shape = built(name)
    params = moved(params)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    part = PartitionSpec("data")
    sharded = jax.shard_map(
        jax.vmap(net.apply, (None, 0, 0, 0)),
        mesh=mesh,
        in_specs=(PartitionSpec(), part, part, part),
        out_specs=part,
    )
    x, t, cond = example((16, *shape)), jnp.linspace(-2.5, 2.5, 16), jnp.arange(16) % 4
    ours = jax.jit(sharded)(params, x, t, cond)
    each = jnp.stack([apply(params, *one) for one in zip(x, t, cond, strict=True)])
    scale = float(jnp.max(jnp.abs(each)))
    np.testing.assert_allclose(ours, each, atol=DEPTH * 16 * np.finfo(np.float32).eps * scale)


@each_network
def test_bad_conditions_name_the_mend(name):
    net, _, params, shape = built(name)
    x = example(shape)
    with pytest.raises(ValueError, match=r"Pass a class in \[0, 3\]"):
        net.apply(params, x, 0.3, None)
    with pytest.raises(ValueError, match="build it with classes="):
        NETWORKS[name][0]().apply({}, x, 0.3, 1)
    with pytest.raises(
        ValueError, match=r"cond = 4 is no class. Pass one whole number in \[0, 3\]"
    ):
        net.apply(params, x, 0.3, 4)
    with pytest.raises(ValueError, match="is no class"):
        net.apply(params, x, 0.3, -1)
    with pytest.raises(ValueError, match="one class, got shape"):
        net.apply(params, x, 0.3, jnp.array([1, 2]))
    with pytest.raises(ValueError, match="one class, got shape"):
        net.apply(params, x, 0.3, 1.5)
    with pytest.raises(ValueError, match=r"noise level must be one number.*vmap"):
        net.apply(params, x, jnp.ones(3), 1)


@pytest.mark.parametrize(
    ("build", "shape", "match"),
    [
        (nets.mlp, (3, 2), "one vector"),
        (nets.unet, (8, 8), r"\(height, width, channels\)"),
        (nets.unet, (7, 8, 1), "multiples of 2"),
        (partial(nets.unet, multipliers=(1, 1, 1)), (8, 6, 1), "multiples of 4"),
        (partial(nets.transformer, patch=3), (9, 8, 1), "multiples of 3"),
    ],
)
def test_bad_shapes_name_the_mend(build, shape, match, key):
    with pytest.raises(ValueError, match=match):
        build().init(key, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (partial(nets.mlp, width=0), "width must be at least 1, got 0"),
        (partial(nets.unet, classes=0), "classes must be at least 1, got 0"),
        (partial(nets.unet, multipliers=()), "multipliers"),
        (partial(nets.transformer, 20, heads=3), "multiple of heads"),
    ],
)
def test_bad_settings_name_the_mend(build, match):
    with pytest.raises(ValueError, match=match):
        build()


def test_size_of_the_default_unet(key):
    image = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)
    params = jax.eval_shape(nets.unet().init, key, image)
    assert sum(p.size for p in jax.tree.leaves(params)) == 366_625


def test_transformer_uses_the_products_it_is_given():
    calls = {"attend": 0, "matmul": 0}

    def attend(q, k, v):
        calls["attend"] += 1
        assert q.shape == k.shape == v.shape == (6, 2, 8)
        return 2 * attention(q, k, v)

    def matmul(x, w):
        calls["matmul"] += 1
        assert x.ndim == w.ndim == 2
        return 3 * (x @ w)

    _, apply, params, shape = built("transformer")
    params, x = moved(params), example(shape)
    y = apply(params, x, 0.3, 1)
    for settings, count in [({"attend": attend}, 2), ({"matmul": matmul}, 2 * 4)]:
        other = jax.jit(NETWORKS["transformer"][0](classes=3, **settings).apply)
        assert not np.allclose(other(params, x, 0.3, 1), y)
        assert calls[next(iter(settings))] == count


def test_unet_attends_at_the_lowest_resolution():
    shapes = []

    def attend(q, k, v):
        shapes.append(q.shape)
        return 2 * attention(q, k, v)

    image = jax.ShapeDtypeStruct((8, 8, 1), jnp.float32)
    wide = nets.unet(32, attend=attend)
    jax.eval_shape(wide.init, jax.random.key(0), image)
    assert set(shapes) == {(16, 2, 32)}
    _, apply, params, shape = built("unet")
    params = moved(params)
    doubled = nets.unet(8, multipliers=(1, 2), attend=attend, classes=3)
    x = example(shape)
    assert not np.allclose(jax.jit(doubled.apply)(params, x, 0.3, 1), apply(params, x, 0.3, 1))
