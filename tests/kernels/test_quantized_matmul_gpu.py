import dataclasses
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxinf_kernels import blackwell
from jaxinf_kernels.chips import CHIPS
from jaxinf_kernels.formats import E4M3, E5M2, INT4, INT8, MXFP4, MXFP8, NVFP4, Quantised, quantise
from jaxinf_kernels.operation import OPERATIONS, How, choose
from jaxinf_kernels.quantized_matmul import gpu, gpu_blocks, reference, sparsify
from jaxinf_kernels.quantized_matmul.backward import PLAIN
from jaxinf_kernels.quantized_matmul.factors import factor
from jaxinf_kernels.quantized_matmul.gpu_blocks import Blocks
from jaxinf_kernels.quantized_matmul.operands import side
from jaxinf_kernels.quantized_matmul.problem import Problem

INTERPRET = plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan")
SMALL = Blocks(64, 64, 2)
HOPPER = How(chip="h200")


def blocked(form, block):
    return dataclasses.replace(form, block=block)


def inputs(seed=0, n=70, k=384, m=72):
    rng = np.random.default_rng(seed)
    x, w, b = rng.normal(size=(n, k)), rng.normal(size=(k, m)), rng.normal(size=m)
    return (jnp.asarray(a, jnp.float32) for a in (x, w, b))


def problem(x, w, activations=None, bias=None, activation=None, dtype=jnp.float32, how=HOPPER):
    """Return what an operation is asked for, and its arrays."""
    (left, ours), (right, theirs) = side(x, activations), side(w)
    spec = Problem(left, right, bias is not None, activation, jnp.dtype(dtype), how=how)
    return spec, [*ours, *theirs, *([] if bias is None else [bias[None]])]


@contextmanager
def interpreted():
    """Run kernels on the CPU; the interpreter's threads do not know of a test's float64."""
    with jax.enable_x64(False), plgpu.force_gpu_interpret_mode(INTERPRET):
        yield


def kernel(x, w, *, blocks=SMALL, **options):
    spec, arrays = problem(x, w, **options)
    with interpreted():
        return gpu.multiply(*arrays, spec=spec, blocks=blocks)[0][0]


def relative(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture
def few(monkeypatch):
    """A chip with two streaming multiprocessors: each has several tiles of a result."""
    for name, chip in CHIPS.items():
        monkeypatch.setitem(CHIPS, name, replace(chip, cores=2))


def columns(form):
    return partial(quantise, form=form, axis=-2)


def half(a):
    return a.astype(jnp.bfloat16)


# name: (what x is cast to, how w is held, x's format, bound of the contract)
G8, GE = blocked(INT8, 128), blocked(E4M3, 128)
PATHS = {
    "w8a8": (None, columns(INT8), INT8, 2e-6),
    "w8a8 g128": (None, columns(G8), G8, 2e-6),
    "w8a8 g128 per token": (None, columns(G8), INT8, 2e-6),
    "w4a8": (None, columns(INT4), INT8, 2e-6),
    "w8a16": (half, columns(INT8), None, 2e-6),
    "w4a16 g48": (half, columns(blocked(INT4, 48)), None, 3e-3),
    "fp8 e5m2": (None, columns(E4M3), E5M2, 2e-6),
    "fp8 g128": (None, columns(GE), GE, 2e-6),
    "fp8 weights": (half, columns(E5M2), None, 2e-6),
    "mxfp8": (None, columns(MXFP8), MXFP8, 2e-6),
    "nvfp4": (None, columns(NVFP4), NVFP4, 2e-6),
    "nvfp4 weights": (half, columns(NVFP4), None, 2e-6),
    "floats": (half, half, None, 2e-6),
}


@pytest.mark.parametrize("name", PATHS)
def test_kernel_is_the_float64_product_of_its_own_operands(x64, few, name):
    cast, hold, form, bound = PATHS[name]
    x, w, b = inputs()
    x = x if cast is None else cast(x)
    held = hold(w)
    own = x if form is None else quantise(x, form)
    exact = reference(own, held, bias=b, activation="silu")
    found = kernel(x, held, activations=form, bias=b, activation="silu")
    assert relative(found, exact) <= bound


@pytest.mark.parametrize("name", ["w8a8", "w8a8 g128 per token", "floats"])
def test_sums_in_tensor_memory_are_the_same(x64, few, name):
    cast, hold, form, bound = PATHS[name]
    x, w, b = inputs(n=150)
    x = x if cast is None else cast(x)
    held = hold(w)
    own = x if form is None else quantise(x, form)
    exact = reference(own, held, bias=b, activation="silu")
    options = {"blocks": Blocks(128, 64, 2), "how": How(chip="b200")}
    found = kernel(x, held, activations=form, bias=b, activation="silu", **options)
    assert relative(found, exact) <= bound


def test_scales_lie_as_tensor_cores_read_them():
    scales = jnp.arange(200 * 12).reshape(1, 200, 12)
    lines = blackwell.scales_ready(scales, 32, 256)
    assert lines.shape == (1, 2, 4, 32, 16)  # 12 scales are filled up to two steps of 8
    for row, column in ((0, 0), (31, 3), (37, 5), (127, 11), (130, 4), (199, 9)):
        line = lines[0, row // 128, column // 4, row % 32]
        assert line[row % 128 // 32 * 4 + column % 4] == scales[0, row, column]


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_results_are_activated_and_rounded_once(x64, few, activation):
    x, w, b = inputs(1, n=8, k=128)
    held, own = quantise(w, INT8, axis=-2), quantise(x, INT8)
    exact = reference(own, held, bias=b, activation=activation)
    found = kernel(own, held, bias=b, activation=activation)
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=2e-5)
    rounded = kernel(own, held, bias=b, activation=activation, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(rounded, half(found))
    np.testing.assert_array_equal(found, kernel(own, held, bias=b, activation=activation))


@pytest.mark.parametrize("form", [INT8, MXFP4])
def test_sums_of_few_tiles_are_spread_over_blocks_of_threads(x64, form):
    x, w, b = inputs(2, n=3, k=1536 + 32, m=40)
    assert gpu_blocks.splits_for(1, 13, 132) == 3
    held, own = quantise(w, form, axis=-2), quantise(x, form)
    exact = reference(own, held, bias=b, activation="gelu")
    found = kernel(own, held, blocks=None, bias=b, activation="gelu")
    assert relative(found, exact) <= 2e-6


def test_sums_of_whole_numbers_are_exact():
    x = jnp.full((8, 4096), 127, jnp.int8).at[:, 0].set(126)
    w = jnp.full((4096, 64), 127, jnp.int8).at[1].set(-125)
    x = Quantised(x, jnp.ones((8, 1)), None, INT8, -1)
    w = Quantised(w, jnp.ones((1, 64)), None, INT8, -2)
    exact = 127**2 * 4094 + 126 * 127 - 125 * 127
    np.testing.assert_array_equal(kernel(x, w), np.float32(exact))


def test_shapes_that_no_block_divides(x64, few):
    for form, k in ((E4M3, 200), (INT4, 90)):
        x, w, _ = inputs(3, n=9, k=k, m=131)
        x = half(x) if form is INT4 else quantise(x, form)
        held = quantise(w, form, axis=-2)
        assert relative(kernel(x, held), reference(x, held)) <= 2e-6


def test_numbers_that_are_not_finite():
    x, w, _ = inputs(4, n=8, k=128)
    x, w = x.at[3, 7].set(-jnp.inf), w.at[9, 11].set(jnp.inf)
    for form in (INT8, MXFP8):
        out = kernel(x, quantise(w, form, axis=-2), activations=form)
        bad = np.zeros(out.shape, bool)
        bad[3], bad[:, 11] = True, True
        np.testing.assert_array_equal(np.isnan(out), bad)


@pytest.mark.parametrize("which", ["x", "w", "both"])
def test_either_side_may_serve_a_batch(x64, few, which):
    _, w, b = inputs(5, n=8, k=128)
    xs = jnp.stack([next(iter(inputs(seed, n=8, k=128))) for seed in range(2)])
    xs, ws = (xs if which != "w" else xs[:1]), jnp.stack([w, -2 * w])[: 1 if which == "x" else 2]
    held = [quantise(a, NVFP4, axis=-2) for a in ws]
    spec, _ = problem(xs[0], held[0], NVFP4, b)
    weights = [
        jnp.stack(a) for a in zip(*((h.elements, h.scales, h.outer) for h in held), strict=True)
    ]
    with interpreted():
        found = gpu.multiply(xs, *weights, b[None], spec=spec, blocks=SMALL)[0]
    for i in range(2):
        own = quantise(xs[i % len(xs)], NVFP4)
        assert relative(found[i], reference(own, held[i % len(held)], bias=b)) <= 2e-6


@pytest.mark.parametrize("form", [INT8, blocked(INT4, 48), NVFP4])
def test_cotangents_times_the_transpose(few, form):
    _, w, _ = inputs(6, m=200)
    made, arrays = side(quantise(w, form, axis=-2))
    held = factor(made, dict(zip(made.names, arrays, strict=True)), -2)
    g = jnp.asarray(np.random.default_rng(1).normal(size=(2, 37, 200)), jnp.float32)
    how = HOPPER._replace(blocks=SMALL)
    with interpreted():
        found = gpu.products().back(g, held, jnp.dtype(jnp.bfloat16), how)
    assert relative(found, PLAIN.back(g, held, jnp.dtype(jnp.bfloat16), how)) <= 1e-6


def test_cotangents_in_float32_are_not_rounded():
    _, w, _ = inputs(6)
    made, arrays = side(quantise(w, INT8, axis=-2))
    held = factor(made, dict(zip(made.names, arrays, strict=True)), -2)
    g = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, w.shape[1])), jnp.float32)
    single = jnp.dtype(jnp.float32)
    found = gpu.products().back(g, held, single, HOPPER)
    np.testing.assert_array_equal(found, PLAIN.back(g, held, single, HOPPER))


def test_no_rows():
    _, w, _ = inputs(7)
    assert kernel(jnp.zeros((0, 384)), quantise(w, INT8, axis=-2), activations=INT8).shape == (
        0,
        72,
    )


def chosen(*args, implementation="gpu", chip="h200", **options):
    """Return what a program for a GPU holds."""
    spec, arrays = problem(*args, how=How(implementation, chip), **options)
    primitive = next(p for p in OPERATIONS if p.name == "quantized_matmul")
    return choose(primitive, spec, arrays, "cuda")


def test_kernels_are_taken_where_they_are_asked_for():
    x, w, _ = inputs(8)
    held = quantise(w, INT8, axis=-2)
    assert chosen(x, held, activations=INT8).kernel is not None
    assert chosen(x, held, activations=INT8, chip="b200").kernel is not None
    nvfp4 = quantise(w, NVFP4, axis=-2)
    assert chosen(x, nvfp4, activations=NVFP4, chip="b200").kernel is not None
    assert "never run" in chosen(x, held, activations=INT8, implementation=None).why


def test_refusals_name_what_can_be_had():
    x, w, _ = inputs(9)
    held = quantise(w, INT8, axis=-2)
    cases = [
        (lambda: chosen(x, held), "astype"),
        (lambda: chosen(half(x), w), "astype"),
        (lambda: chosen(x, sparsify(w, INT8), activations=INT8), "dense"),
        (lambda: chosen(half(x), quantise(w, INT4, axis=-2, block=24)), "block=32"),
        (lambda: chosen(x, quantise(w, NVFP4, axis=-2), activations=blocked(INT8, 8)), "block=16"),
        (lambda: chosen(x, held, activations=INT8, chip="v5e"), "no kernel for v5e"),
        (lambda: chosen(half(x), held, chip="b200"), "one format"),
        (lambda: chosen(x, quantise(w, E4M3, axis=-2), activations=MXFP8, chip="b200"), "one"),
    ]
    for call, text in cases:
        with pytest.raises(NotImplementedError, match=text):
            call()
