import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxinf_kernels import decode_attention as room
from jaxinf_kernels.formats import E4M3, INT4, INT8, NVFP4

from jaxinf.run.chips import pod

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu's compiler is not installed"
)
PODS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2",
        "tpu7x": "tpu7x:2x2x1"}  # fmt: skip


def compiled(chip, form, queries=None, size=128, groups=2, d=128, **options):
    one = NamedSharding(Mesh(np.array(pod(PODS[chip]).devices)[:1], ("x",)), PartitionSpec())
    heads = (4, 4 * groups, d) if queries is None else (4, queries, 4 * groups, d)
    dtype = options.pop("dtype", jnp.bfloat16)

    def arrays():
        cache = room.empty(1024, size, groups, d, form=form, dtype=dtype)
        return (
            jnp.zeros(heads, dtype),
            cache,
            jnp.zeros((4, 16), jnp.int32),
            jnp.zeros(4, jnp.int32),
        )

    place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one)  # noqa: E731
    given = jax.tree.map(place, jax.eval_shape(arrays))
    function = partial(room.decode_attention, chip=chip, return_lse=True, **options)
    return jax.jit(function, out_shardings=one).lower(*given).compile()


@pytest.mark.parametrize("form", [None, INT8, INT4, E4M3, NVFP4], ids=str)
@pytest.mark.parametrize("chip", PODS)
def test_the_kernel_compiles(chip, form):
    found = compiled(chip, form)
    assert "tpu_custom_call" in found.as_text()
    memory = found.memory_analysis()  # no copy of the cache is made
    assert memory.temp_size_in_bytes < memory.argument_size_in_bytes / 4


@pytest.mark.parametrize("chip", PODS)
@pytest.mark.parametrize("form", [None, INT4, NVFP4], ids=str)
def test_options_small_pages_and_narrow_heads_compile(chip, form):
    found = compiled(
        chip, form, queries=3, size=32, d=64, soft_cap=30.0, window=100,
        alibi=jnp.ones(8), sinks=jnp.ones(8),
    )  # fmt: skip
    assert "tpu_custom_call" in found.as_text()


@pytest.mark.parametrize("chip", PODS)
def test_wide_queries_compile(chip):
    assert "tpu_custom_call" in compiled(chip, None, dtype=jnp.float32).as_text()
