import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jaxinf_kernels.formats import E4M3, E5M2, INT4, INT8, MXFP4, MXFP8, NVFP4, quantise
from jaxinf_kernels.operation import How
from jaxinf_kernels.quantized_matmul import reference, sparsify, tpu, xla
from jaxinf_kernels.quantized_matmul.blocks import Blocks
from jaxinf_kernels.quantized_matmul.operands import side
from jaxinf_kernels.quantized_matmul.problem import Problem

INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
SMALL = Blocks(32, 128, 256)


def blocked(form, block):
    return dataclasses.replace(form, block=block)


def inputs(seed=0, n=40, k=512, m=200, outliers=False):
    rng = np.random.default_rng(seed)
    x, w, b = rng.normal(size=(n, k)), rng.normal(size=(k, m)), rng.normal(size=m)
    if outliers:
        x[:, rng.choice(k, 4, replace=False)] *= 20
    return (jnp.asarray(a, jnp.float32) for a in (x, w, b))


def by(multiply, x, w, *, activations=None, bias=None, activation=None, chip="v5e", dtype=None):
    """Multiply by one implementation."""
    (left, ours), (right, theirs) = side(x, activations), side(w)
    how = How(chip=chip)
    dtype = jnp.dtype(dtype or jnp.float32)
    spec = Problem(left, right, bias is not None, activation, dtype, how=how)
    extras = [] if bias is None else [bias[None]]
    return multiply(*ours, *theirs, *extras, spec=spec)[0][0]


def kernel(*args, blocks=SMALL, **options):
    return by(partial(tpu.multiply, blocks=blocks, interpret=INTERPRET), *args, **options)


def plain(*args, **options):
    return by(xla.multiply, *args, **options)


def relative(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def half(a):
    return a.astype(jnp.bfloat16)


def columns(form):
    return partial(quantise, form=form, axis=-2)


# name: (what x is cast to, how w is held, x's format, bound of c.4, chips)
G8, G4 = blocked(INT8, 128), blocked(INT4, 128)
EVERY = ("v4", "v5e", "tpu7x")
PATHS = {
    "w8a8": (None, columns(INT8), INT8, 2e-6, EVERY),
    "w8a8 g128": (None, columns(G8), G8, 2e-6, EVERY),
    "w8a8 g128 per token": (None, columns(G8), INT8, 2e-6, ("v5e",)),
    "w8a8 g32": (None, columns(blocked(INT8, 32)), INT8, 3e-3, ("v5e",)),
    "w4a8": (None, columns(INT4), INT8, 2e-6, ("v5e",)),
    "w4a4": (None, columns(INT4), INT4, 2e-6, ("v5e",)),
    "w8a16": (half, columns(INT8), None, 3e-3, ("v5e",)),
    "w8a32": (None, columns(INT8), None, 2e-6, ("v5e",)),
    "w4a16 g128": (half, columns(G4), None, 3e-3, ("v5e",)),
    "w4a16 g32": (half, columns(blocked(INT4, 32)), None, 3e-3, ("v5e",)),
    "fp8": (None, columns(E4M3), E4M3, 2e-6, EVERY),
    "fp8 e5m2": (None, columns(E4M3), E5M2, 2e-6, ("tpu7x",)),
    "fp8 g128": (None, columns(blocked(E4M3, 128)), blocked(E4M3, 128), 2e-6, EVERY),
    "mxfp8": (None, columns(MXFP8), MXFP8, 2e-6, ("v5e",)),
    "mxfp4": (None, columns(MXFP4), MXFP4, 2e-6, ("v5e", "tpu7x")),
    "nvfp4": (None, columns(NVFP4), NVFP4, 2e-6, ("v5e", "tpu7x")),
    "nvfp4 weights": (half, columns(NVFP4), None, 2e-6, ("v5e",)),
    "sparse bf16": (half, lambda w: sparsify(half(w)), None, 2e-6, ("v5e",)),
    "sparse w8a8": (None, partial(sparsify, form=INT8), INT8, 2e-6, ("v4", "v5e")),
    "sparse w8a16": (half, partial(sparsify, form=INT8), None, 2e-6, ("v5e",)),
    "sparse w4a16 g32": (half, partial(sparsify, form=blocked(INT4, 32)), None, 3e-3, ("v5e",)),
    "sparse mxfp8": (None, partial(sparsify, form=MXFP8), MXFP8, 2e-6, ("v5e",)),
    "sparse nvfp4": (None, partial(sparsify, form=NVFP4), NVFP4, 2e-6, ("v5e",)),
    "sparse 1:4": (None, partial(sparsify, form=E4M3, kept=1), E4M3, 2e-6, ("v5e",)),
    "sparse 4:8": (None, partial(sparsify, form=INT8, kept=4, of=8), INT8, 2e-6, ("v5e",)),
}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_kernel_is_the_float64_product_of_its_own_operands(x64, name):
    cast, hold, form, bound, chips = PATHS[name]
    x, w, b = inputs()
    x = x if cast is None else cast(x)
    held = hold(w)
    own = x if form is None else quantise(x, form)
    exact = reference(own, held, bias=b, activation="silu")
    options = {"activations": form, "bias": b, "activation": "silu"}
    assert relative(plain(x, held, **options), exact) <= bound
    for chip in chips:
        found = kernel(x, held, chip=chip, **options)
        assert relative(found, exact) <= bound
    np.testing.assert_array_equal(found, kernel(x, held, chip=chips[-1], **options))  # a rerun


# relF, cosine and SQNR of c.4; outliers in x harm formats with one scale a row: c.2's 23.3 dB
GATES = {
    "w8a8": (0.015, 0.9999, 36.5),
    "w8a8 g128": (0.015, 0.9999, 36.5),
    "w8a16": (0.011, 0.9999, 39),
    "w4a16 g128": (0.13, 0.99, 17.7),
    "w4a16 g32": (0.11, 0.99, 19.2),
    "fp8": (0.042, 0.999, 27.5),
    "mxfp8": (0.047, 0.999, 26.5),
    "mxfp4": (0.18, 0.984, 15),
    "nvfp4": (0.15, 0.989, 16.5),
}
OUTLIERS = {
    "w8a8": (0.082, 0.996, 21.7),
    "w8a8 g128": (0.082, 0.996, 21.7),
    # a power of two for a scale clips what is largest: most of these rows' energy
    "mxfp8": (0.057, 0.998, 24.9),
    "mxfp4": (0.224, 0.975, 13),
}


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("name", GATES)
def test_formats_are_as_near_to_the_floats_as_they_may_be(x64, name, outliers):
    cast, hold, form, _, _ = PATHS[name]
    bound, cosine, decibels = (OUTLIERS if outliers else GATES).get(name, GATES[name])
    for seed in range(3):
        x, w, _ = inputs(seed, n=32, k=1024, m=128, outliers=outliers)
        exact = np.asarray(reference(x, w)).ravel()
        x = x if cast is None else cast(x)
        found = kernel(x, hold(w), activations=form, blocks=Blocks(32, 128, 1024))
        found = np.asarray(found, np.float64).ravel()
        error = relative(found, exact)
        assert error <= bound
        assert found @ exact >= cosine * np.linalg.norm(found) * np.linalg.norm(exact)
        assert -20 * np.log10(error) >= decibels
