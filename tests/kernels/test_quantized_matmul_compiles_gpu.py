import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jaxinf_kernels.formats import E4M3, E5M2, INT4, INT8, MXFP4, MXFP8, NVFP4, quantise
from jaxinf_kernels.quantized_matmul import quantized_linear, quantized_matmul
from ptxas import compiled

G8, G4, GE = (dataclasses.replace(f, block=128) for f in (INT8, INT4, E4M3))
G32 = dataclasses.replace(INT4, block=32)
PATHS = {
    "w8a8": (INT8, INT8), "w8a8 g128": (G8, G8), "fp8": (E4M3, E4M3), "fp8 mixed": (E4M3, E5M2),
    "fp8 g128": (GE, GE), "w8a16": (INT8, None), "w4a16 g128": (G4, None),
    "w4a16 g32": (G32, None), "fp8 weights": (E4M3, None), "mxfp4": (MXFP4, MXFP4),
    "mxfp8": (MXFP8, MXFP8), "nvfp4": (NVFP4, NVFP4), "nvfp4 weights": (NVFP4, None),
    "floats": (None, None),
}  # fmt: skip


def value(name, n, k, m, chip, dtype=jnp.bfloat16, of=jnp.bfloat16):
    """A product with all that may follow it."""
    form, own = PATHS[name]
    w = jax.ShapeDtypeStruct((k, m), jnp.bfloat16)
    held = w if form is None else jax.eval_shape(partial(quantise, form=form, axis=-2), w)
    x, bias = jax.ShapeDtypeStruct((n, k), of), jax.ShapeDtypeStruct((m,), jnp.float32)
    options = {"activations": own, "activation": "gelu", "out_dtype": dtype}
    multiply = partial(quantized_matmul, **options, implementation="gpu", chip=chip)
    return lambda x, w, b: multiply(x, w, bias=b), (x, held, bias)


def gradient(name, n, k, m, chip, **options):
    """A product and its cotangents."""
    multiply, (x, held, bias) = value(name, n, k, m, chip, **options)
    return jax.value_and_grad(lambda x, w, b: jnp.sum(multiply(x, w, b))), (x, held, bias)


def training(forward, back, n, k, m, chip):
    """Training in few bits."""

    def loss(x, w, data):
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        options = {"gradient": back, "key": key, "implementation": "gpu", "chip": chip}
        return jnp.sum(quantized_linear(x, w, forward=forward, **options))

    x, w = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((n, k), (k, m)))
    return jax.value_and_grad(loss, (0, 1)), (x, w, jax.ShapeDtypeStruct((2,), jnp.uint32))


def blackwell():
    """Return what is compiled for a B200: (name, function, arguments)."""
    large, small, odd = (2048, 4096, 4096), (16, 4096, 4096), (37, 816, 203)
    names = "w8a8", "w8a8 g128", "fp8", "fp8 mixed", "fp8 g128", "mxfp8", "mxfp4", "nvfp4", "floats"
    found = [(name, *value(name, *large, "b200")) for name in names]
    found += [("fp8, few rows", *value("fp8", *small, "b200"))]
    found += [("w8a8, odd", *value("w8a8", *odd, "b200"))]
    found += [("nvfp4, gradient", *gradient("nvfp4", *odd, "b200"))]
    found += [("training in int8", *training(INT8, INT8, *odd, "b200"))]
    return found


def hopper(chip="h200"):
    """Return what is compiled for Hopper: (name, function, arguments)."""
    large, small, odd = (2048, 4096, 4096), (16, 4096, 4096), (37, 784, 200)
    found = [(name, *value(name, *large, chip)) for name in PATHS]
    found += [(f"{name}, few rows", *value(name, *small, chip)) for name in ("w8a8", "w4a16 g128")]
    found += [
        (f"{name}, odd", *value(name, 37, 768 + 48, 203, chip)) for name in ("w8a8", "floats")
    ]
    found += [("float32 results", *value("w8a8", *large, chip, dtype=jnp.float32))]
    found += [
        (f"{name}, gradient", *gradient(name, *odd, chip)) for name in ("w8a16", "fp8", "nvfp4")
    ]
    found.append(("float32 gradient", *gradient("w8a8", *odd, chip, of=jnp.float32)))
    for forward, back in ((INT8, INT8), (E4M3, (E5M2, E4M3)), (NVFP4, NVFP4)):
        found.append((f"training in {forward}", *training(forward, back, *odd, chip)))
    return found


@pytest.mark.parametrize("name", [name for name, *_ in hopper()])
def test_hopper_takes_it_without_spilling(name):
    found = compiled("h200", "test_quantized_matmul_compiles_gpu")[name]
    assert "error" not in found
    assert found["own"]
    # a kernel that another case has, too, is compiled for the first of them
    assert all(kernel["architecture"] == "sm_90a" for kernel in found["kernels"])
    assert all(kernel["spills"] == 0 for kernel in found["kernels"])


@pytest.mark.parametrize("name", [name for name, *_ in blackwell()])
def test_blackwell_takes_it(name):
    found = compiled("b200", "test_quantized_matmul_compiles_gpu")[name]
    assert "error" not in found
    assert found["own"]
    assert all(kernel["architecture"] == "sm_100a" for kernel in found["kernels"])
    assert all(kernel["spills"] <= 8 for kernel in found["kernels"])
