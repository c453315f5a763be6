"""Attention's kernels compiled by libtpu for chips that are not here, alone and for a pod."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxinf_kernels.attention import attention, masks
from libtpu_compiler import CHIPS, compiled

from jaxinf.core import batch_vmap
from jaxinf.run.chips import pod

POD = np.array(pod("v5e:2x2").devices)


def loss(q, k, v, bias, ids):
    mask = masks.causal() & masks.segments(ids) | masks.prefix(5)
    out = attention(q, k, v, mask=mask, bias=bias, soft_cap=20.0)
    return jnp.sum(jnp.square(out.astype(jnp.float32)))


def shaped(sharding, *shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("chip", CHIPS)
def test_forward_and_backward(chip, dtype):
    arrays = [shaped(None, 700, heads, 96, dtype=dtype) for heads in (4, 2, 2)]
    bias, ids = shaped(None, 700, 700, dtype=dtype), shaped(None, 700, dtype=jnp.int32)
    text = compiled(chip, jax.value_and_grad(loss, (0, 1, 2, 3)), *arrays, bias, ids).as_text()
    assert len(re.findall(r"custom-call\(.*tpu_custom_call", text)) == 2


@pytest.mark.parametrize("groups", [4, 2])
def test_a_program_for_a_pod_holds_the_kernel(groups):
    """Each device has its examples, and its heads where these have keys of their own."""
    axes = ("data", "tensor")
    mesh = Mesh(POD.reshape(2, 2), axes, axis_types=(AxisType.Auto,) * 2)
    examples = NamedSharding(mesh, PartitionSpec("data"))
    q, kv = (shaped(examples, 4, 512, heads, 128) for heads in (4, groups))
    bias = shaped(NamedSharding(mesh, PartitionSpec()), 512, 512)
    ids = shaped(examples, 4, 512, dtype=jnp.int32)

    def total(vmap, *args):
        q, k, v, bias, ids = args
        return jnp.sum(vmap(lambda q, k, v, ids: loss(q, k, v, bias, ids))(q, k, v, ids))

    def text(vmap):
        run = jax.jit(jax.value_and_grad(lambda *args: total(vmap, *args), (0, 1, 2, 3)))
        return run.lower(q, kv, kv, bias, ids).compile().as_text()

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        calls = re.findall(r"= \((\S+), .* custom-call\(.*tpu_custom_call", text(batch_vmap))
        assert len(calls) == 2
        heads = 2 if groups == 4 else 4
        assert all(call.startswith(f"bf16[2,{heads},512,128]") for call in calls)
        # where no mesh's axis is named, the compiler divides the plain form
        assert "tpu_custom_call" not in text(jax.vmap)


def test_inside_shard_map():
    """Each device has its examples; the cotangents of keys that all share are summed."""
    mesh = Mesh(POD.reshape(4), ("data",), axis_types=(AxisType.Auto,))
    spread, whole = PartitionSpec("data"), PartitionSpec()

    def body(q, k, v):
        def total(q, k, v):
            out = jax.vmap(lambda q: attention(q, k, v, mask=masks.causal()))(q)
            return jnp.sum(out.astype(jnp.float32))

        return jax.grad(total, (0, 1, 2))(q, k, v)

    run = jax.shard_map(
        body, mesh=mesh, in_specs=(spread, whole, whole), out_specs=(spread, whole, whole)
    )
    q = shaped(NamedSharding(mesh, spread), 4, 512, 2, 128)
    k = shaped(NamedSharding(mesh, whole), 512, 2, 128)
    text = jax.jit(run).lower(q, k, k).compile().as_text()
    assert len(re.findall(r"custom-call\(.*tpu_custom_call", text)) == 2
    assert "all-reduce" in text


def test_a_chip_is_named():
    with pytest.raises(ValueError, match="no chip is named 'v9'; there are v4"):
        attention(*[jnp.ones((4, 1, 2))] * 3, chip="v9")


def test_a_tpus_kernel_is_not_for_this_machine():
    with pytest.raises(NotImplementedError, match="'tpu' was asked for"):
        attention(*[jnp.ones((4, 1, 2))] * 3, implementation="tpu")
