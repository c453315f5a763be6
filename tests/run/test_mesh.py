"""Meshes and the places of a state's leaves on them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinf import core, process, sampler, score
from jaxinf.run.mesh import Rule, batch_sharding, make_mesh, parse_rule, shardings, sizes

STATE = {
    "params": {"block_0": {"qkv": {"kernel": (64, 192)}, "bias": (192,)}},
    "average": {"block_0": {"qkv": {"kernel": (64, 192)}, "bias": (192,)}},
    "count": (),
}
STATE = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    STATE,
    is_leaf=lambda a: isinstance(a, tuple),
)


@pytest.mark.parametrize(
    ("text", "devices", "found"),
    [
        ("", 8, (1, 8, 1, 1, 1)),
        ("fsdp=2, tensor=2", 8, (1, 2, 2, 1, 2)),
        ("slice=2,data=1,fsdp=2,sequence=2,tensor=2", 16, (2, 1, 2, 2, 2)),
        ("tensor=1", 1, (1, 1, 1, 1, 1)),
    ],
)
def test_what_is_not_named_goes_to_data(text, devices, found):
    assert tuple(sizes(text, devices).values()) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model=2", "slice, data, fsdp, sequence, tensor, not 'model'"),
        ("fsdp=2,fsdp=4", "names fsdp twice"),
        ("fsdp=0", "whole number above 0"),
        ("fsdp", "whole number above 0"),
        ("fsdp=3", "3 places for 8 devices"),
        ("data=2,fsdp=2", "4 places for 8 devices"),
    ],
)
def test_sizes_that_are_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        sizes(text, 8)


def test_rules_overrides_and_the_rest():
    mesh = make_mesh("fsdp=2,tensor=2")
    rules = [Rule("params/.*qkv/kernel", ("fsdp", "tensor"))]
    found = shardings(mesh, STATE, rules, [parse_rule("average/.*/qkv=-,fsdp+tensor")])
    specs = jax.tree.map(lambda one: one.spec, found)
    assert specs["params"]["block_0"]["qkv"]["kernel"] == P("fsdp", "tensor")
    assert specs["average"]["block_0"]["qkv"]["kernel"] == P(None, ("fsdp", "tensor"))
    assert specs["params"]["block_0"]["bias"] == specs["count"] == P()  # small
    without = shardings(mesh, STATE)["params"]["block_0"]["qkv"]["kernel"]
    assert without.spec == P(None, "fsdp")  # the largest dimension


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule("block_9", ("fsdp",))], "finds no leaf"),
        ([Rule("qkv", ("fsdp",)), Rule("kernel", ("tensor",))], "found by two rules"),
        ([Rule("qkv", ("model",))], "must be one of"),
        ([Rule("qkv", ("fsdp", "fsdp"))], "at most once"),
        ([Rule("bias", ("fsdp", "tensor"))], "has 2 dimensions"),
        ([Rule("qkv", ("data",))], "not divided by data of size 3"),
    ],
)
def test_rules_that_are_wrong(rules, message):
    mesh = make_mesh("data=3,fsdp=2", jax.devices()[:6])
    with pytest.raises(ValueError, match=message):
        shardings(mesh, STATE, rules)


def test_rules_from_the_command_line():
    assert parse_rule("qkv/kernel=fsdp,tensor") == Rule("qkv/kernel", (("fsdp",), ("tensor",)))
    with pytest.raises(ValueError, match="PATTERN=AXIS"):
        parse_rule("qkv/kernel")


def test_samples_lie_over_the_mesh_and_are_the_same(key):
    """Numbers agree with one device to rounding, and every device holds its share."""
    p = process.gaussian(process.cosine(t_max=0.99))
    model = score.oracle(p, core.gaussian(jnp.zeros(3), core.Diagonal(0.5)))
    x, plan = p.prior().sample(key, (16, 3)), sampler.uniform(p, 5)

    def draw():
        return sampler.sample(key, sampler.ancestral(p), model, plan, x).x

    alone = draw()
    mesh = make_mesh("fsdp=2,tensor=2")
    with jax.set_mesh(mesh):
        spread = jax.jit(draw)()
    assert spread.sharding.is_equivalent_to(batch_sharding(mesh), 2)
    assert {shard.data.shape for shard in spread.addressable_shards} == {(4, 3)}
    np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seeds", [1, 2])
def test_examples_stay_where_they_are(key, seeds):
    """Parameters that are divided by outputs would divide the outputs, not the examples."""
    mesh = make_mesh("fsdp=8")
    w = jax.device_put(jax.random.normal(key, (3, 16)), NamedSharding(mesh, P(None, "fsdp")))

    def both(w):
        def one(x):
            return x @ w, core.stay(x @ w)

        return core.batch_vmap(one)(jnp.ones((8, 3)))

    many = both if seeds == 1 else jax.vmap(both)
    w = w if seeds == 1 else jnp.stack([w] * seeds)
    with jax.set_mesh(mesh):
        outputs, stayed = jax.jit(many)(w)
    leading = (None,) * (seeds > 1)
    ndim = 2 + len(leading)
    assert outputs.sharding.is_equivalent_to(NamedSharding(mesh, P(*leading, None, "fsdp")), ndim)
    assert stayed.sharding.is_equivalent_to(NamedSharding(mesh, P(*leading, "fsdp", None)), ndim)
    chex.assert_trees_all_equal(outputs, stayed)


def test_a_batch_that_the_mesh_does_not_divide_is_mapped_all_the_same():
    with jax.set_mesh(make_mesh("fsdp=8")):
        out = jax.jit(core.batch_vmap(lambda x: core.stay(2 * x)))(jnp.ones((6, 3)))
    chex.assert_trees_all_equal(out, 2 * jnp.ones((6, 3)))


def test_a_leaf_that_the_mesh_does_not_divide_stays(key):
    with jax.set_mesh(make_mesh()):
        whole = jax.jit(lambda a: core.spread(a))({"a": jnp.ones((6, 2)), "b": jnp.ones(())})
    chex.assert_trees_all_equal(whole, {"a": jnp.ones((6, 2)), "b": jnp.ones(())})
