import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxinf_kernels.formats import E4M3, INT8, MXFP4, MXFP8, NVFP4, Quantised, quantise
from jaxinf_kernels.operation import How
from jaxinf_kernels.quantized_matmul import (
    prune,
    quantized_linear,
    quantized_matmul,
    reference,
    sparsify,
    tpu,
    xla,
)
from jaxinf_kernels.quantized_matmul.blocks import Blocks
from jaxinf_kernels.quantized_matmul.operands import side
from jaxinf_kernels.quantized_matmul.problem import ACTIVATIONS, Problem

INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
SMALL = Blocks(32, 128, 256)
CHIPS = "v4", "v5e", "tpu7x"


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


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_epilogue_is_the_activation_of_scaled_and_shifted_sums(x64, name):
    x, w, b = inputs(1)
    held, own = quantise(w, INT8, axis=-2), quantise(x, INT8)
    a = np.asarray(reference(own, held, bias=b)) / 8
    gelu = 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
    expected = {"gelu": gelu, "silu": a / (1 + np.exp(-a)), "relu": np.maximum(a, 0)}[name]
    held = dataclasses.replace(held, scales=held.scales / 8)
    options = {"bias": b / 8, "activation": name}
    np.testing.assert_allclose(reference(own, held, **options), expected, rtol=1e-5, atol=1e-6)
    for multiply in (kernel, plain):
        np.testing.assert_allclose(multiply(own, held, **options), expected, rtol=2e-5, atol=2e-6)


def test_sums_of_whole_numbers_are_exact_on_chips_without_them():
    x = jnp.full((8, 4096), 127, jnp.int8).at[:, 0].set(126)
    w = jnp.full((4096, 128), 127, jnp.int8).at[1].set(-125)
    one = jnp.ones((8, 1)), jnp.ones((1, 128))
    x = Quantised(x, one[0], None, INT8, -1)
    w = Quantised(w, one[1], None, INT8, -2)
    exact = 127**2 * 4094 + 126 * 127 - 125 * 127
    assert np.float32(exact - 1) != np.float32(exact + 3)
    for chip in CHIPS:
        found = kernel(x, w, chip=chip, blocks=Blocks(8, 128, 4096))
        np.testing.assert_array_equal(found, np.float32(exact))


def test_k_that_no_block_divides_is_filled_up():
    for k in (1408, 100):  # 11 x 128, which blocks of 256 do not divide
        x, w, _ = inputs(2, n=9, k=k, m=130)
        held, own = quantise(w, INT8, axis=-2), quantise(x, INT8)
        got = kernel(own, held, blocks=Blocks(32, 128, 1024))
        assert relative(got, reference(own, held)) <= 2e-6
    mx = kernel(x[:, :96], quantise(w[:96], MXFP4, axis=-2), activations=MXFP4)
    exact = reference(quantise(x[:, :96], MXFP4), quantise(w[:96], MXFP4, axis=-2))
    assert relative(mx, exact) <= 2e-6


def test_one_scale_for_the_whole_matrix(x64):
    x, w, _ = inputs(3)
    top = jnp.max(jnp.abs(w)) / 448
    held = Quantised((w / top).astype(E4M3.dtype), top[None, None], None, E4M3, -2)
    exact = reference(quantise(x, E4M3), held)
    assert relative(quantized_matmul(x, held, activations=E4M3), exact) <= 2e-6
    assert relative(kernel(x, held, activations=E4M3), exact) <= 2e-6


@pytest.mark.parametrize("multiply", [kernel, plain])
def test_numbers_that_are_not_finite_and_scales_of_zero(multiply):
    x, w, b = inputs(4)
    x = x.at[3, 7].set(-jnp.inf).at[5, 8].set(jnp.inf)
    w = w.at[9, 11].set(-jnp.inf)
    for form in (INT8, E4M3, MXFP8):
        out = multiply(x, quantise(w, form, axis=-2), activations=form)
        bad = np.zeros(out.shape, bool)
        bad[[3, 5]], bad[:, 11] = True, True
        np.testing.assert_array_equal(np.isnan(out), bad)
    held = quantise(w.at[9, 11].set(0), INT8, axis=-2)
    held = dataclasses.replace(held, scales=held.scales.at[:, 4].set(0))
    out = multiply(x[:2], held, activations=INT8, bias=b)
    np.testing.assert_array_equal(out[:, 4], jnp.broadcast_to(b[4], (2,)))
    zeros = multiply(jnp.zeros((3, 512)), held, activations=INT8)
    np.testing.assert_array_equal(zeros, 0)


def test_no_rows():
    _, w, b = inputs(5)
    for multiply in (kernel, plain):
        out = multiply(jnp.zeros((0, 512)), quantise(w, NVFP4, axis=-2), bias=b)
        assert out.shape == (0, 200)
    grad = jax.grad(lambda w: quantized_linear(jnp.zeros((0, 512)), w, forward=INT8).sum())(w)
    np.testing.assert_array_equal(grad, 0)


def test_rows_and_columns_may_be_reordered():
    x, w, _ = inputs(6)
    rng = np.random.default_rng(0)
    i, j = rng.permutation(40), rng.permutation(200)
    for form in (INT8, MXFP4):
        held = quantise(w, form, axis=-2)
        out = kernel(x, held, activations=form)
        turned = kernel(x[i], quantise(w[:, j], form, axis=-2), activations=form)
        np.testing.assert_array_equal(turned, out[i][:, j])


def test_results_have_the_dtype_that_is_asked_for():
    x, w, _ = inputs(7, n=4)
    held = quantise(w, INT8, axis=-2)
    assert quantized_matmul(x, held).dtype == jnp.float32
    assert quantized_matmul(half(x), held, activations=INT8).dtype == jnp.bfloat16
    assert quantized_matmul(quantise(x, INT8), held).dtype == jnp.float32
    assert quantized_matmul(x, held, out_dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert kernel(x, held, dtype=jnp.bfloat16).dtype == jnp.bfloat16


def test_a_batch_is_a_loop():
    rows = [next(iter(inputs(seed, n=8, m=130))) for seed in range(3)]
    _, w, b = inputs(9, m=130)
    for form in (INT8, NVFP4):
        held = quantise(w, form, axis=-2)
        one = partial(quantized_matmul, w=held, activations=form, bias=b, activation="gelu")
        mapped = jax.jit(jax.vmap(one))(jnp.stack(rows))
        np.testing.assert_allclose(mapped, jnp.stack([one(x) for x in rows]), rtol=2e-6, atol=1e-5)
    # a batch in the kernel: of rows by one w, and of both
    stack = jnp.stack(rows)
    weights = jnp.stack([w, 2 * w, -w])
    for all_w in (w[None], weights):
        held = jax.vmap(partial(quantise, form=NVFP4, axis=-2))(all_w)
        left, right = side(rows[0], NVFP4)[0], side(quantise(w, NVFP4, axis=-2))[0]
        spec = Problem(left, right, False, None, jnp.dtype(jnp.float32), how=How(chip="v5e"))
        arrays = stack, held.elements, held.scales, held.outer
        found = tpu.multiply(*arrays, spec=spec, blocks=SMALL, interpret=INTERPRET)[0]
        for i in range(3):
            w_i = quantise(all_w[i if len(all_w) > 1 else 0], NVFP4, axis=-2)
            exact = reference(quantise(rows[i], NVFP4), w_i)
            assert relative(found[i], exact) <= 2e-6


def test_rows_spread_over_devices():
    x, w, _ = inputs(10, n=64, m=128)
    mesh = Mesh(np.array(jax.devices()), ("d",))
    held = quantise(w, INT8, axis=-2)
    rows, whole = PartitionSpec("d"), PartitionSpec()
    multiply = partial(quantized_matmul, activations=INT8, activation="relu")
    spread = jax.jit(jax.shard_map(multiply, mesh=mesh, in_specs=(rows, whole), out_specs=rows))
    placed = jax.device_put(x, NamedSharding(mesh, rows))
    np.testing.assert_allclose(spread(placed, held), multiply(x, held), rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 3), (4, 16)])
@pytest.mark.parametrize("form", [None, INT8, NVFP4])
def test_sparse_weights_are_the_largest_of_each_group(kept, of, form):
    w = next(iter(inputs(11, n=48, k=16)))
    if form is NVFP4 and 16 % of:
        with pytest.raises(ValueError, match="must divide blocks"):
            sparsify(w, form, kept=kept, of=of)
        return
    mask = np.zeros(w.shape, bool)
    for group in range(0, 48, of):
        for j in range(16):
            top = np.argsort(-np.abs(np.asarray(w)[group : group + of, j]), kind="stable")[:kept]
            mask[group + top, j] = True
    np.testing.assert_array_equal(prune(w, kept, of), mask)
    held = sparsify(w, form, kept=kept, of=of)
    assert held.shape == w.shape
    assert held.values.shape == (kept, 48 // of, 16)
    pruned = jnp.where(mask, w, 0)
    whole = pruned if form is None else quantise(pruned, form, axis=-2)
    same = jax.tree.map(np.testing.assert_array_equal, held.dense(), whole)
    assert jax.tree.structure(same) is not None


def test_bad_input_names_the_mend():
    x, w, b = inputs(12)
    held = quantise(w, INT8, axis=-2)
    cases = [
        (lambda: quantized_matmul(x.T, held), ValueError, "jax.vmap"),
        (lambda: quantized_matmul(x, quantise(w, INT8)), ValueError, "axis=-2"),
        (lambda: quantized_matmul(quantise(x, INT8, axis=0), held), ValueError, "axis=-1"),
        (lambda: quantized_matmul(quantise(x, INT8), held, activations=INT8), ValueError, "leave"),
        (lambda: quantized_matmul(x, held, bias=b[:3]), ValueError, "bias"),
        (lambda: quantized_matmul(x, held, activation="tanh"), ValueError, "gelu"),
        (lambda: quantized_matmul(x, held, chip="v9"), ValueError, "no chip"),
        (lambda: quantized_matmul(x[:, :40], held.elements[:40] * 1.0, activations=MXFP8),
         ValueError, "do not divide"),
        (lambda: quantized_matmul(x, held, implementation="mosaic"), ValueError, "'tpu'"),
        (lambda: quantized_matmul(x, held, implementation="tpu"), NotImplementedError, "leave it"),
        (lambda: quantized_linear(x, w, forward=INT8, key=jax.random.key(0)), ValueError, "format"),
        (lambda: quantized_linear(x, half(w)), TypeError, "astype"),
        (lambda: prune(w, 5, 4), ValueError, "1 up to 4"),
        (lambda: sparsify(w, of=64, kept=32), ValueError, "smaller groups"),
    ]  # fmt: skip
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()
    long = jax.ShapeDtypeStruct((1, 140000), jnp.float32), jax.ShapeDtypeStruct((140000, 1), "f4")
    with pytest.raises(ValueError, match="32 bits"):
        jax.eval_shape(partial(quantized_linear, forward=INT8), *long)
    scales = dataclasses.replace(held, scales=held.scales[:, :7])
    with pytest.raises(ValueError, match="do not fit"):
        quantized_matmul(x, scales)
