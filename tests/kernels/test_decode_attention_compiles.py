from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jaxinf_kernels import decode_attention as room
from jaxinf_kernels.formats import E4M3, INT4, INT8, NVFP4
from libtpu_compiler import CHIPS, compiled


def program(chip, form, queries=None, size=128, groups=2, d=128, **options):
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

    function = partial(room.decode_attention, chip=chip, return_lse=True, **options)
    return compiled(chip, function, *jax.eval_shape(arrays))


@pytest.mark.parametrize("form", [None, INT8, INT4, E4M3, NVFP4], ids=str)
@pytest.mark.parametrize("chip", CHIPS)
def test_the_kernel_compiles(chip, form):
    found = program(chip, form)
    assert "tpu_custom_call" in found.as_text()
    memory = found.memory_analysis()  # no copy of the cache is made
    assert memory.temp_size_in_bytes < memory.argument_size_in_bytes / 4


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("form", [None, INT4, NVFP4], ids=str)
def test_options_small_pages_and_narrow_heads_compile(chip, form):
    found = program(
        chip, form, queries=3, size=32, d=64, soft_cap=30.0, window=100,
        alibi=jnp.ones(8), sinks=jnp.ones(8),
    )  # fmt: skip
    assert "tpu_custom_call" in found.as_text()


@pytest.mark.parametrize("chip", CHIPS)
def test_wide_queries_compile(chip):
    assert "tpu_custom_call" in program(chip, None, dtype=jnp.float32).as_text()
