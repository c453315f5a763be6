import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxinf_kernels import lowbit_attention as low
from jaxinf_kernels.attention import masks
from jaxinf_kernels.chips import CHIPS
from jaxinf_kernels.lowbit_attention import lowbit_attention
from libtpu_compiler import CHIPS as NAMES
from libtpu_compiler import compiled


def program(chip, function, n=384, m=512, heads=2, groups=1, d=128):
    shapes = (n, heads, d), (m, groups, d), (m, groups, d)
    args = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes]
    return compiled(chip, function, *args).as_text()


@pytest.mark.parametrize("chip", NAMES)
@pytest.mark.parametrize("name", low.PRECISIONS)
def test_every_format_compiles_for_every_chip(chip, name):
    run = functools.partial(
        lowbit_attention, precision=low.PRECISIONS[name], mask=masks.causal(128), chip=chip
    )
    assert "tpu_custom_call" in program(chip, run)


@pytest.mark.parametrize("chip", NAMES)
def test_what_pays_compiles_with_its_gradient(chip):
    precision = low.policy(CHIPS[chip]) or low.SAGE8

    def total(q, k, v):
        found = lowbit_attention(q, k, v, precision=precision, mask=masks.causal(128), chip=chip)
        return jnp.sum(found.astype(jnp.float32))

    text = program(chip, jax.grad(total, argnums=(0, 1, 2)))
    assert "tpu_custom_call" in text


@pytest.mark.parametrize("name", ["sage8", "sage4"])
def test_all_that_attention_can_do_compiles(name):
    n, m = 300, 500
    rng = np.random.default_rng(0)
    options = {
        "bias": jnp.asarray(rng.normal(size=(2, n, m)), jnp.float32),
        "alibi": jnp.ones(2),
        "sinks": jnp.zeros(2),
        "soft_cap": 5.0,
    }
    marks = jnp.asarray(np.arange(m) // 70, jnp.int32)
    seen = masks.segments(marks[:n], marks) & masks.lengths(keys=jnp.int32(450)) | masks.cells(
        jnp.asarray(rng.random((n, m)) < 0.1)
    ) & masks.chunks(64)
    for extra in (options, {"sinks": jnp.zeros(2)}):
        run = functools.partial(
            lowbit_attention, precision=low.PRECISIONS[name], mask=seen, chip="v5e", **extra
        )
        assert "tpu_custom_call" in program("v5e", run, n=n, m=m)


def test_an_unknown_chip_has_int8():
    run = functools.partial(lowbit_attention, precision=low.SAGE8)
    assert "tpu_custom_call" in program("v5e", run)
