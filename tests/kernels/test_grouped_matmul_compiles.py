"""The TPU's compiler takes the kernels, for every generation, without a TPU."""

import jax
import jax.numpy as jnp
import pytest
from jaxinf_kernels.formats import INT8, Quantised
from jaxinf_kernels.grouped_matmul import grouped_matmul
from libtpu_compiler import CHIPS, compiled


def kernels(chip, function, *shapes):
    return compiled(chip, function, *shapes).as_text().count('custom_call_target="tpu_custom_call"')


def shapes(kind, n=1000, k=1408, m=1100, groups=8):
    dtype = jnp.float32 if kind == "float32" else jnp.bfloat16
    of = jax.ShapeDtypeStruct
    w = of((groups, k, m), dtype)
    if kind == "held":
        w = Quantised(of((groups, k, m), jnp.int8), of((groups, 1, m), jnp.float32), None, INT8, -2)
    return of((n, k), dtype), w, of((groups,), jnp.int32)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "int8", "held"])
def test_every_generation_takes_both_directions(chip, kind):
    def value(x, w, sizes):
        form = INT8 if kind == "int8" else None
        return grouped_matmul(x, w, sizes, form=form, chip=chip, implementation="tpu")

    def both(x, w, sizes):
        if kind == "held":
            y, pull = jax.vjp(lambda x: value(x, w, sizes), x)
        else:
            y, pull = jax.vjp(lambda x, w: value(x, w, sizes), x, w)
        return y, pull(y)

    assert kernels(chip, both, *shapes(kind)) == (2 if kind == "held" else 3)


@pytest.mark.parametrize("chip", CHIPS)
def test_blocks_for_no_chip_fit_every_chip(chip):
    assert kernels(chip, grouped_matmul, *shapes("bfloat16", k=4096)) == 1


@pytest.mark.parametrize("chip", ["v4", "v5p"])
@pytest.mark.parametrize("kind", ["float32", "held"])
def test_deep_products_fit(chip, kind):
    function = lambda *a: grouped_matmul(*a, chip=chip)  # noqa: E731
    assert kernels(chip, function, *shapes(kind, n=2048, k=9000, m=2048)) == 1


def test_a_chip_without_int8_must_be_named():
    with pytest.raises(jax.errors.JaxRuntimeError, match="i8"):
        compiled("v4", grouped_matmul, *shapes("held"))
