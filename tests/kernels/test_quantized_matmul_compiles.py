import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jaxinf_kernels.formats import E4M3, E5M2, INT4, INT8, MXFP4, MXFP8, NVFP4, quantise
from jaxinf_kernels.quantized_matmul import quantized_linear, quantized_matmul, sparsify
from libtpu_compiler import CHIPS, compiled

N, K, M = 37, 768, 200
"""None of them a multiple of a block."""


def held(form, of=0):
    make = partial(sparsify, form=form) if of else partial(quantise, form=form, axis=-2)
    return jax.eval_shape(make, jax.ShapeDtypeStruct((K, M), jnp.float32))


G8, G4, GE = (dataclasses.replace(f, block=128) for f in (INT8, INT4, E4M3))
PATHS = {
    "w8a8": (INT8, INT8, 0), "w8a8 g128": (G8, G8, 0), "w4a4": (INT4, INT4, 0),
    "w4a8": (INT4, INT8, 0), "w8a16": (INT8, None, 0), "w4a16 g128": (G4, None, 0),
    "fp8": (E4M3, E4M3, 0), "fp8 g128": (GE, GE, 0), "e5m2": (E4M3, E5M2, 0),
    "mxfp8": (MXFP8, MXFP8, 0), "mxfp4": (MXFP4, MXFP4, 0), "nvfp4": (NVFP4, NVFP4, 0),
    "nvfp4 weights": (NVFP4, None, 0), "sparse w8a8": (INT8, INT8, 4),
    "sparse fp8": (E4M3, E4M3, 4), "sparse nvfp4": (NVFP4, NVFP4, 4),
    "sparse w4a16": (G4, None, 4),
}  # fmt: skip


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", PATHS)
def test_values_and_gradients_compile_for_every_tpu(name, chip):
    form, own, of = PATHS[name]
    x = jax.ShapeDtypeStruct((N, K), jnp.bfloat16)

    def loss(x, w):
        out = quantized_matmul(x, w, activations=own, activation="gelu", chip=chip)
        return jnp.sum(out.astype(jnp.float32))

    text = compiled(chip, jax.value_and_grad(loss), x, held(form, of)).as_text()
    # the value with its activation, sums without it anew, and the product with the transpose
    assert text.count("tpu_custom_call") >= 3


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("forms", [(INT8, INT8), (E4M3, (E5M2, E4M3)), (NVFP4, NVFP4)])
def test_training_compiles_for_every_tpu(forms, chip):
    x, w = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((N, K), (K, M)))
    forward, gradient = forms

    def loss(x, w, data):
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        out = quantized_linear(x, w, forward=forward, gradient=gradient, key=key, chip=chip)
        return jnp.sum(out.astype(jnp.float32))

    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    text = compiled(chip, jax.value_and_grad(loss, (0, 1)), x, w, key).as_text()
    assert text.count("tpu_custom_call") >= 3  # the value, and both cotangents


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ["w8a8", "w8a16", "w4a16 g128", "mxfp8", "nvfp4", "w8a8 g128"])
def test_large_blocks_fit_the_memory_of_every_tpu(name, chip):
    form, own, _ = PATHS[name]
    x = jax.ShapeDtypeStruct((2048, 4096), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((4096, 2048), jnp.float32)
    w = jax.eval_shape(partial(quantise, form=form, axis=-2), w)
    text = compiled(chip, partial(quantized_matmul, activations=own, chip=chip), x, w).as_text()
    assert "tpu_custom_call" in text


def test_v4_has_to_be_told():
    x = jax.ShapeDtypeStruct((N, K), jnp.bfloat16)
    with pytest.raises(Exception, match=r"i8|int8|matmul"):
        compiled("v4", partial(quantized_matmul, activations=INT8), x, held(INT8))
