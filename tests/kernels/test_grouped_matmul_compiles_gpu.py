from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jaxinf_kernels.formats import INT8, quantise
from jaxinf_kernels.grouped_matmul import grouped_matmul
from ptxas import compiled

SHAPES = {"large": (8, 8192, 4096, 2048), "small": (8, 64, 2048, 1408), "odd": (5, 301, 200, 130)}
"""Groups, rows, k and m."""


def value(shape, chip, held=False, dtype=jnp.bfloat16, **options):
    """A product."""
    groups, n, k, m = SHAPES[shape]
    x, w = (jax.ShapeDtypeStruct(s, dtype) for s in ((n, k), (groups, k, m)))
    if held:
        w = jax.eval_shape(partial(quantise, form=INT8, axis=-2), w)
    sizes = jax.ShapeDtypeStruct((groups,), jnp.int32)
    return partial(grouped_matmul, implementation="gpu", chip=chip, **options), (x, w, sizes)


def gradient(shape, chip, **options):
    """A product and its cotangents."""
    multiply, args = value(shape, chip, **options)

    def loss(x, w, sizes):
        return jnp.sum(multiply(x, w, sizes).astype(jnp.float32))

    return jax.value_and_grad(loss, (0, 1)), args


def blackwell():
    """Return what is compiled for a B200: (name, function, arguments)."""
    found = [(f"{shape} gradient", *gradient(shape, "b200")) for shape in ("large", "odd")]
    return [*found, ("odd int8", *value("odd", "b200", held=True))]


def hopper(chip="h200"):
    """Return what is compiled for Hopper: (name, function, arguments)."""
    found = [(f"{shape} gradient", *gradient(shape, chip)) for shape in SHAPES]
    found += [(f"{shape} int8", *value(shape, chip, held=True)) for shape in SHAPES]
    found += [("odd int8 of float32", *value("odd", chip, dtype=jnp.float32, form=INT8))]
    found += [("odd int8 gradient", *gradient("odd", chip, form=INT8))]
    return found


@pytest.mark.parametrize("name", [name for name, *_ in hopper()])
def test_hopper_takes_it_without_spilling(name):
    found = compiled("h200", "test_grouped_matmul_compiles_gpu")[name]
    assert "error" not in found
    assert found["own"]
    # a kernel that another case has, too, is compiled for the first of them
    assert all(kernel["architecture"] == "sm_90a" for kernel in found["kernels"])
    assert all(kernel["spills"] == 0 for kernel in found["kernels"])


@pytest.mark.parametrize("name", [name for name, *_ in blackwell()])
def test_blackwell_takes_it_without_spilling(name):
    found = compiled("b200", "test_grouped_matmul_compiles_gpu")[name]
    assert "error" not in found
    assert found["own"]
    assert all(kernel["architecture"] == "sm_100a" for kernel in found["kernels"])
    assert all(kernel["spills"] == 0 for kernel in found["kernels"])
