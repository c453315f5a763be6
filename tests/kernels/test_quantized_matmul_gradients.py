import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec
from jax.test_util import check_grads
from jaxinf_kernels.formats import E4M3, E5M2, INT4, INT8, MXFP4, MXFP8, NVFP4, quantise
from jaxinf_kernels.operation import How, Rule
from jaxinf_kernels.quantized_matmul import (
    prune,
    quantized_linear,
    quantized_matmul,
    reference,
    sparsify,
    tpu,
)
from jaxinf_kernels.quantized_matmul.backward import PLAIN, pull
from jaxinf_kernels.quantized_matmul.blocks import Blocks
from jaxinf_kernels.quantized_matmul.operands import side
from jaxinf_kernels.quantized_matmul.problem import Problem
from jaxinf_kernels.quantized_matmul.reference import numbers

INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


def inputs(seed=0, n=24, k=256, m=160, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = (n, k), (k, m), (m,), (n, m)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def relative(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def silu_slope(u):
    s = 1 / (1 + np.exp(-u))
    return s * (1 + u * (1 - s))


HELD = {
    "int8": partial(quantise, form=INT8, axis=-2),
    "int4 g32": partial(quantise, form=dataclasses.replace(INT4, block=32), axis=-2),
    "mxfp4": partial(quantise, form=MXFP4, axis=-2),
    "nvfp4": partial(quantise, form=NVFP4, axis=-2),
    "sparse int8": partial(sparsify, form=INT8),
    "sparse nvfp4": partial(sparsify, form=NVFP4),
}


def cotangents(x, held, b, g, own=None, activation="silu", blocks=None, on_tpu=False):
    """Return cotangents of x and bias by the reverse rule of one implementation."""
    (left, ours), (right, theirs) = side(x, own), side(held)
    how = How(chip="v5e", blocks=blocks)
    spec = Problem(left, right, True, activation, jnp.dtype(jnp.float32), how=how)
    active = (True, *[False] * len(theirs), True)
    products = tpu.products(INTERPRET) if on_tpu else PLAIN
    args = *ours, *theirs, b[None], g[None], g[None]  # the value is not looked at
    return [a[0] for a in pull(*args, spec=Rule(spec, active, 1), products=products)]


@pytest.mark.parametrize("own", [None, INT8])
@pytest.mark.parametrize("name", HELD)
def test_cotangents_of_held_weights_are_those_of_their_numbers(x64, name, own):
    x, w, b, g = inputs()
    held = HELD[name](w / 16)
    used = numbers(x if own is None else quantise(x, own))
    slope = np.asarray(g) * silu_slope(np.asarray(used @ numbers(held) + b[None]))
    expected = slope @ numbers(held).T, slope.sum(0)

    def loss(x, b):
        out = quantized_matmul(x, held, activations=own, bias=b, activation="silu")
        return jnp.sum(out * g)

    grads = jax.jit(jax.grad(loss, (0, 1)))(x, b)
    # 160 columns are two blocks, the last of them not full
    found = cotangents(x, held, b, g, own, blocks=Blocks(16, 128, 128), on_tpu=True)
    for got in (grads, found):
        for a, e in zip(got, expected, strict=True):
            # products of float32 with weights in few bits; w8a8 sums in bfloat16 where blocks
            # are small, 3e-3 by the contract of mixed products
            assert relative(a, e) <= (2e-6 if own is None or "g32" not in name else 3e-3)


def test_cotangents_in_bfloat16_keep_the_contract(x64):
    x, w, b, g = inputs(1)
    for hold in HELD.values():
        held = hold(w)
        found = cotangents(x.astype(jnp.bfloat16), held, b, g, activation=None, on_tpu=True)
        assert relative(found[0], np.asarray(g) @ numbers(held).T) <= 8e-3
        np.testing.assert_allclose(found[1], g.sum(0), rtol=1e-5, atol=1e-5)


def test_gradients_of_held_weights_are_finite_differences(x64):
    x, w, b, g = inputs(2, n=4, k=32, m=8, dtype=jnp.float64)
    held = quantise(w, MXFP8, axis=-2)

    def loss(x, b):
        x, b = jnp.asarray(x), jnp.asarray(b)
        out = quantized_matmul(x, held, bias=b, activation="gelu")
        return jnp.sum(out * g)

    check_grads(loss, (x, b), order=2, modes=["fwd", "rev"], rtol=1e-5)


def test_scales_can_be_learned(x64):
    x, w, _, g = inputs(3, n=4, k=64, m=8)
    held = quantise(w, dataclasses.replace(INT8, block=32), axis=-2)

    def loss(scales):
        return jnp.sum(quantized_matmul(x, dataclasses.replace(held, scales=scales)) * g)

    got = jax.grad(loss)(held.scales)
    products = jnp.einsum("nbk,nm,bkm->bm", x.reshape(4, 2, 32), g,
                          held.elements.astype(jnp.float32).reshape(2, 32, 8))  # fmt: skip
    np.testing.assert_allclose(got, products, rtol=1e-5, atol=1e-4)


FORMATS = [None, INT8, E4M3, MXFP8, NVFP4, dataclasses.replace(INT8, block=128)]


@pytest.mark.parametrize("form", FORMATS)
def test_training_passes_straight_through_the_rounding(x64, form):
    x, w, b, g = inputs(4)

    def loss(x, w, b):
        out = quantized_linear(x, w, forward=form, bias=b, activation="silu")
        return jnp.sum(out * g), out

    (grads, out) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x, w, b)
    qx, qw = (
        numbers(a if form is None else quantise(a, form, axis=i)) for a, i in ((x, -1), (w, -2))
    )
    u = np.asarray(qx @ qw + b[None])
    slope = np.asarray(g) * silu_slope(u)
    np.testing.assert_allclose(out, u / (1 + np.exp(-u)), rtol=1e-4, atol=1e-4)
    for got, expected in zip(grads, (slope @ qw.T, qx.T @ slope, slope.sum(0)), strict=True):
        assert relative(got, expected) <= 1e-5


@pytest.mark.parametrize("on_tpu", [False, True])
@pytest.mark.parametrize("gradient", [INT8, (E5M2, E4M3), MXFP8, NVFP4])
@pytest.mark.parametrize("noisy", [False, True])
def test_training_in_few_bits_is_what_it_says(x64, gradient, noisy, on_tpu):
    n, m = 40, 136
    x, w, b, g = inputs(5, n=n, m=m)
    key = jax.random.key(3) if noisy else None
    form, partner = gradient if isinstance(gradient, tuple) else (gradient, gradient)
    if on_tpu:
        (left, ours), (right, theirs) = side(x, INT8), side(w, INT8)
        impl, extras = None, []
        if noisy:
            impl, extras = jax.random.key_impl(key), [jax.random.key_data(key)[None]]
        spec = Problem(left, right, True, None, jnp.dtype(jnp.float32), (form, partner), impl,
                       How(chip="v5e", blocks=Blocks(32, 128, 128)))  # fmt: skip
        args = *ours, *theirs, b[None], *extras, g[None], g[None]
        rule = Rule(spec, (True, True, True, *[False] * len(extras)), 1)
        dx, dw, db = (a[0] for a in pull(*args, spec=rule, products=tpu.products(INTERPRET)))
    else:

        def loss(x, w, b):
            out = quantized_linear(x, w, forward=INT8, gradient=gradient, key=key, bias=b)
            return jnp.sum(out * g)

        dx, dw, db = jax.jit(jax.grad(loss, (0, 1, 2)))(x, w, b)
    keys = (None, None) if key is None else jax.random.split(key)
    block = form.block or 1

    def filled(a, axis):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (0, -a.shape[axis] % block)
        return jnp.pad(a, pad)

    s = quantise(filled(g, 1), form, axis=1, key=keys[0])
    p = quantise(filled(w.T, 0), partner, axis=0)
    assert relative(dx, numbers(s) @ numbers(p)) <= 2e-6
    s = quantise(filled(g, 0), form, axis=0, key=keys[1])
    p = quantise(filled(x.T, 1), partner, axis=1)
    assert relative(dw, numbers(p) @ numbers(s)) <= 2e-6
    np.testing.assert_allclose(db, g.sum(0), rtol=1e-5, atol=1e-5)


def test_random_rounding_keeps_the_expectation(x64):
    x, w, _, g = inputs(6, n=16, k=8, m=16)
    top = jnp.max(jnp.abs(g), axis=1, keepdims=True)

    def dx(key):
        def loss(x):
            return jnp.sum(quantized_linear(x, w, gradient=INT4, key=key) * g)

        return jax.grad(loss)(x)

    draws = np.asarray(jax.jit(jax.vmap(dx))(jax.random.split(jax.random.key(0), 4000)))
    exact = np.asarray(g) @ numbers(quantise(w.T, INT4, axis=0))
    z = (draws.mean(0) - exact) / (draws.std(0) / np.sqrt(len(draws)) + 1e-6)
    assert np.abs(z).max() < 5
    assert 0.8 < np.sqrt(np.mean(z**2)) < 1.2
    # to the nearest there is a bias that so many draws would show
    nearest = numbers(quantise(g, INT4, axis=1)) @ numbers(quantise(w.T, INT4, axis=0))
    assert np.abs((nearest - exact) / (draws.std(0) / np.sqrt(len(draws)))).max() > 20
    assert np.all(np.asarray(top) > 0)


def test_gradients_of_pruned_weights_are_masked(x64):
    x, w, _, g = inputs(7, k=64, m=16)

    def loss(x, w):
        return jnp.sum(quantized_linear(x, w, forward=MXFP8, sparsity=(2, 4)) * g[:, :16])

    dx, dw = jax.grad(loss, (0, 1))(x, w)
    mask = np.asarray(prune(w))
    qw = numbers(quantise(jnp.where(mask, w, 0), MXFP8, axis=-2))
    assert relative(dx, g[:, :16] @ qw.T) <= 1e-5
    qx = numbers(quantise(x, MXFP8))
    assert relative(dw, mask * np.asarray(qx.T @ g[:, :16])) <= 1e-5
    assert np.all(np.asarray(dw)[~mask] == 0)
    held = sparsify(w, MXFP8)
    same = quantized_matmul(x, held, activations=MXFP8)
    value = quantized_linear(x, w, forward=MXFP8, sparsity=(2, 4))
    np.testing.assert_allclose(value, same, rtol=1e-6, atol=1e-6)


def test_forward_mode_and_second_derivatives_are_of_the_straight_product(x64):
    x, w, b, g = inputs(8, n=3, k=32, m=8)
    tx, tw = inputs(9, n=3, k=32, m=8)[:2]
    w, tw = w / 8, tw / 8
    form = E4M3

    def value(x, w):
        return quantized_linear(x, w, forward=form, gradient=INT8, bias=b, activation="gelu")

    qx, qw = numbers(quantise(x, form)), numbers(quantise(w, form, axis=-2))
    _, slope = jax.jvp(partial(jax.nn.gelu, approximate=True), (qx @ qw + b[None],),
                       (tx @ qw + qx @ tw,))  # fmt: skip
    _, got = jax.jit(lambda *a: jax.jvp(value, a[:2], a[2:]))(x, w, tx, tw)
    assert relative(got, slope) <= 1e-5
    hessian = jax.jit(jax.jacfwd(jax.grad(lambda x: jnp.sum(value(x, w) * g))))(x)
    exact = jax.hessian(lambda x: jnp.sum(jax.nn.gelu(x @ qw + b[None]) * g))(qx)
    assert relative(hessian, exact) <= 1e-4


def test_gradients_of_a_batch_are_a_loop(x64):
    _, w, b, g = inputs(10, n=8, k=64, m=32)
    x = jnp.stack([inputs(seed, n=8, k=64, m=32)[0] for seed in range(3)])
    keys = jax.random.split(jax.random.key(1), 3)

    def loss(x, w, b, key):
        out = quantized_linear(x, w, forward=MXFP8, gradient=MXFP8, key=key, bias=b)
        return jnp.sum(out * g)

    each = jax.grad(loss, (0, 1, 2))
    mapped = jax.jit(jax.vmap(each, (0, None, None, 0)))(x, w, b, keys)
    loop = [each(x[i], w, b, keys[i]) for i in range(3)]
    for got, parts in zip(mapped, zip(*loop, strict=True), strict=True):
        np.testing.assert_allclose(got, jnp.stack(parts), rtol=1e-5, atol=1e-5)

    def total(x, w, b):
        return jnp.sum(jax.vmap(loss, (0, None, None, 0))(x, w, b, keys))

    summed = jax.jit(jax.grad(total, (1, 2)))(x, w, b)
    for got, parts in zip(summed, list(zip(*loop, strict=True))[1:], strict=True):
        np.testing.assert_allclose(got, sum(parts), rtol=1e-5, atol=1e-4)


def test_gradients_over_devices():
    x, w, _, g = inputs(11, n=64, k=64, m=32)
    mesh = Mesh(np.array(jax.devices()), ("d",))
    rows, whole = PartitionSpec("d"), PartitionSpec()

    def loss(x, w, g):
        return jnp.sum(quantized_linear(x, w, forward=INT8) * g)

    def local(x, w, g):
        # w serves all rows: its cotangents of all devices are summed by shard_map itself
        return jax.grad(loss, (0, 1))(x, w, g)

    spread = jax.shard_map(local, mesh=mesh, in_specs=(rows, whole, rows),
                           out_specs=(rows, whole))  # fmt: skip
    dx, dw = jax.jit(spread)(x, w, g)
    ex, ew = jax.grad(loss, (0, 1))(x, w, g)
    np.testing.assert_allclose(dx, ex, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dw, ew, rtol=1e-5, atol=1e-4)


def test_reference_is_the_product_of_what_matrices_stand_for(x64):
    x, w, b, _ = inputs(12, n=3, k=32, m=8)
    qx, qw = quantise(x, NVFP4), sparsify(w, INT4)
    total = np.zeros((3, 8))
    values, places = np.asarray(qw.values, np.float64), np.asarray(qw.places)
    s = np.asarray(qx.scales, np.float64) * float(qx.outer)
    for i in range(3):
        for j in range(8):
            for group in range(8):
                for t in range(2):
                    k = 4 * group + ((places[group, j] >> (2 * t)) & 3)
                    left = float(qx.elements[i, k]) * s[i, k // 16]
                    total[i, j] += left * values[t, group, j] * float(qw.scales[0, j])
    expected = np.maximum(total + np.asarray(b)[None], 0)
    np.testing.assert_allclose(reference(qx, qw, bias=b, activation="relu"), expected, rtol=1e-12)
