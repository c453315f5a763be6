import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jaxinf_kernels import attention as room
from jaxinf_kernels import lowbit_attention as low
from jaxinf_kernels.attention import masks
from jaxinf_kernels.attention.api import prepare as as_problem
from jaxinf_kernels.attention.blocks import Blocks
from jaxinf_kernels.lowbit_attention import lowbit_attention, tpu
from jaxinf_kernels.lowbit_attention.problem import LowBit
from jaxinf_kernels.operation import How

INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
NAMES = tuple(low.PRECISIONS)
# relative error in Frobenius' norm, cosine, and the error where keys have channels far from zero
Q_GATES = {
    "sage8": (0.015, 0.9999, 0.015),
    "sage8_block": (0.015, 0.9999, 0.015),
    "sage8_fp8": (0.045, 0.999, 0.045),
    "sage8_int8": (0.03, 0.9995, 0.03),
    "sage4": (0.20, 0.98, 0.04),
    "fp8": (0.065, 0.998, 0.065),
    "mxfp8": (0.075, 0.997, 0.075),
    "mxfp4": (0.27, 0.96, 0.27),
    "nvfp4": (0.21, 0.978, 0.21),
}
K_GATE = 2.5e-3


def inputs(seed, n=160, m=200, heads=2, groups=1, d=32, outlier=False, dtype=jnp.bfloat16):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(s, h, d)) for s, h in ((n, heads), (m, groups), (m, groups)))
    if outlier:  # some channels of keys are large for every token, and values have means
        k = k + 10.0 * (rng.random(d) < 0.1)
        v = v + 0.5 * rng.normal(size=d)
    return [jnp.asarray(a, dtype) for a in (q, k, v)]


def kernel(q, k, v, precision, *, mask=None, bias=None, alibi=None, sinks=None, soft_cap=None,
           chip="v5e", blocks=None):  # fmt: skip
    """The TPU's kernel, interpreted, in float32's world."""
    with jax.enable_x64(False):
        how = How("tpu", chip, blocks or Blocks(128, 128, 128))
        problem, given = as_problem(
            q, k, v, mask, bias, alibi, sinks, soft_cap, q.shape[-1] ** -0.5, how
        )
        spec = LowBit(problem, precision)
        run = jax.jit(functools.partial(tpu.attend, spec=spec, interpret=INTERPRET))
        out, lse = run(*problem.flat(given))
        return jnp.moveaxis(out[0], 0, 1), lse[0].T


def error(found, expected):
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def check_sums(lse, whole):
    """Where a weight is at a tie of its format, float32 may round it the other way: few sums."""
    lse, whole = np.asarray(lse), np.asarray(whole)
    np.testing.assert_array_equal(np.isfinite(lse), np.isfinite(whole))
    off = np.abs(lse[np.isfinite(whole)] - whole[np.isfinite(whole)])
    assert np.mean(off > 1e-5) <= 0.05
    assert np.max(off) <= 1e-2


def cosine(a, b):
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def wide(*arrays):
    return [None if a is None else a.astype(jnp.float64) for a in arrays]


def options(n=160, m=200, heads=2):
    """Every mask, bias, slope, sink and cap once."""
    rng = np.random.default_rng(5)
    marks = jnp.asarray(np.sort(rng.integers(0, 4, size=m)), jnp.int32)
    cells = rng.random((n, m)) < 0.6
    cells[7] = False
    bias = jnp.asarray(rng.normal(size=(heads, n, m)), jnp.float32)
    slopes, sinks = jnp.asarray([0.1, 0.02], "f4"), jnp.asarray([1.0, -2.0], "f4")
    return {
        "none": {},
        "causal": {"mask": masks.causal(m - n)},
        "window": {"mask": masks.window(40, 3, m - n)},
        "chunks": {"mask": masks.chunks(64) & masks.causal()},
        "prefix": {"mask": masks.causal() | masks.prefix(jnp.int32(9))},
        "lengths": {"mask": masks.lengths(jnp.int32(150), jnp.int32(90))},
        "segments": {"mask": masks.segments(marks[:n], marks)},
        "known cells": {"mask": masks.cells(cells)},
        "cells": {"mask": masks.cells(jnp.asarray(cells)), "soft_cap": 2.0},
        "bias": {"bias": bias, "alibi": slopes},
        "sinks": {"sinks": sinks, "mask": masks.causal(m - n)},
        "all": {"bias": bias[0], "alibi": slopes, "sinks": sinks, "soft_cap": 3.0,
                "mask": masks.window(90, None)},
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_is_its_emulation(x64, name):
    precision = low.PRECISIONS[name]
    draws = [inputs(seed, outlier=outlier) for seed in range(3) for outlier in (False, True)]
    q, k, v = (jnp.concatenate(a, axis=1) for a in zip(*draws, strict=True))
    mask = masks.causal(40)
    out, lse = kernel(q, k, v, precision, mask=mask)
    expected, whole = low.reference(q, k, v, precision=precision, mask=mask, block=128)
    split = [np.asarray(a).reshape(160, 3, 2, 2, -1) for a in (out, expected)]
    for outlier in (0, 1):  # all seeds together: a weight at a tie is a hundredth of one row
        assert error(*(a[:, :, outlier] for a in split)) <= K_GATE
    check_sums(lse, whole)


@pytest.mark.parametrize("name", NAMES)
def test_plain_jax_has_the_kernels_numbers(x64, name):
    precision = low.PRECISIONS[name]
    q, k, v = inputs(3)
    with jax.enable_x64(False):
        found, lse = lowbit_attention(
            q, k, v, precision=precision, mask=masks.causal(40), return_lse=True
        )
    expected, whole = low.reference(q, k, v, precision=precision, mask=masks.causal(40))
    assert error(found, expected) <= K_GATE
    check_sums(lse, whole)
    if precision.exponents:  # rounding does not depend on blocks
        out, _ = kernel(q, k, v, precision, mask=masks.causal(40))
        assert error(out, found) <= 5e-4


@pytest.mark.parametrize(
    ("name", "how"), [*[("sage4", how) for how in options()], ("sage8", "all"), ("sage8", "sinks")]
)
def test_every_mask_is_the_emulations(x64, name, how):
    precision = low.PRECISIONS[name]
    q, k, v = inputs(4, outlier=True)
    given = options()[how]
    out, lse = kernel(q, k, v, precision, **given)
    expected, whole = low.reference(q, k, v, precision=precision, block=128, **given)
    assert error(out, expected) <= K_GATE
    check_sums(lse, whole)
    with jax.enable_x64(False):
        plain = lowbit_attention(q, k, v, precision=precision, **given)
    assert error(plain, low.reference(q, k, v, precision=precision, **given)[0]) <= K_GATE


@pytest.mark.parametrize("name", NAMES)
def test_errors_of_the_format(x64, name):
    precision = low.PRECISIONS[name]
    plain, least, outliers = Q_GATES[name]
    for seed in range(3):
        for outlier, bound in ((False, plain), (True, outliers)):
            q, k, v = inputs(seed, n=512, m=640, d=128, outlier=outlier)
            mask = masks.causal(128)
            exact, whole = room.reference(*wide(q, k, v), mask=mask)
            with jax.enable_x64(False):
                out, lse = lowbit_attention(
                    q, k, v, precision=precision, mask=mask, return_lse=True
                )
            assert error(out, exact) <= bound
            assert cosine(out, exact) >= least
            assert np.max(np.abs(lse - whole)) <= 5 * bound


@pytest.mark.parametrize("name", NAMES)
def test_equal_values_are_returned(name):
    q, k, v = inputs(6)
    ones = jnp.ones_like(v)
    for out in (
        kernel(q, k, ones, low.PRECISIONS[name], mask=masks.causal(40))[0],
        lowbit_attention(q, k, ones, precision=low.PRECISIONS[name], mask=masks.causal(40)),
    ):
        np.testing.assert_array_equal(out, ones[:160].repeat(2, axis=1))


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_in_the_keys_is_not_seen(x64, name):
    precision = low.PRECISIONS[name]
    q, k, v = inputs(7, d=64, n=256, m=256, dtype=jnp.float32)
    moved = k + 20.0 * jnp.asarray(np.random.default_rng(1).normal(size=(1, 1, 64)), jnp.float32)
    with jax.enable_x64(False):
        out = lowbit_attention(q, k, v, precision=precision)
        far, lse = lowbit_attention(q, moved, v, precision=precision, return_lse=True)
        unsmoothed = low.Precision(precision.qk, precision.pv, smooth_k=False)
        rough = lowbit_attention(q, moved, v, precision=unsmoothed)
    assert error(far, out) <= Q_GATES[name][0]
    exact, whole = room.reference(*wide(q, moved, v))
    assert error(far, exact) <= Q_GATES[name][0]
    assert error(rough, exact) > 2 * error(far, exact)
    assert np.max(np.abs(lse - whole)) <= 5 * Q_GATES[name][0]


@pytest.mark.parametrize("name", ["sage8", "nvfp4", "sage8_int8"])
def test_what_sees_nothing_is_zero(name):
    q, k, v = inputs(8, dtype=jnp.float32)
    seen = np.random.default_rng(0).random((160, 200)) < 0.5
    seen[[3, 100]] = False
    seen[:, 128:] = False
    for mask in (masks.cells(seen), masks.cells(jnp.asarray(seen))):
        out, lse = kernel(q, k, v, low.PRECISIONS[name], mask=mask)
        np.testing.assert_array_equal(out[jnp.asarray([3, 100])], 0)
        np.testing.assert_array_equal(lse[jnp.asarray([3, 100])], -np.inf)
        assert np.all(np.isfinite(out))

        def value(q, k, v, mask=mask):
            return jnp.sum(
                lowbit_attention(q, k, v, precision=low.PRECISIONS[name], mask=mask) ** 2
            )

        gradients = jax.grad(value, argnums=(0, 1, 2))(q, k, v)
        assert all(np.all(np.isfinite(g)) for g in gradients)
        np.testing.assert_array_equal(gradients[0][jnp.asarray([3, 100])], 0)
        np.testing.assert_array_equal(gradients[1][128:], 0)


@pytest.mark.parametrize("name", ["sage8", "sage4", "nvfp4"])
def test_bits_repeat_and_move_with_heads(name):
    precision = low.PRECISIONS[name]
    q, k, v = inputs(9, heads=4, groups=2)
    out, lse = kernel(q, k, v, precision, mask=masks.causal(40))
    again, lse_again = kernel(q, k, v, precision, mask=masks.causal(40))
    np.testing.assert_array_equal(out, again)
    np.testing.assert_array_equal(lse, lse_again)
    turned = jnp.asarray([2, 3, 0, 1])
    out_turned, _ = kernel(q[:, turned], k[:, ::-1], v[:, ::-1], precision, mask=masks.causal(40))
    np.testing.assert_array_equal(out_turned, out[:, turned])


def test_a_chip_without_the_formats_computes_the_same():
    for name in ("sage8_int8", "sage4", "fp8"):
        q, k, v = inputs(10)
        first, second = (kernel(q, k, v, low.PRECISIONS[name], chip=c)[0] for c in ("v5e", "v4"))
        np.testing.assert_allclose(
            np.asarray(first, np.float32), np.asarray(second, np.float32), rtol=2**-7, atol=1e-6
        )


def test_rows_in_blocks_are_the_whole(monkeypatch):
    q, k, v = inputs(11, n=300, dtype=jnp.float32)
    marks = jnp.asarray(np.arange(300) // 40)
    for name, given in (
        ("sage4", {"mask": masks.segments(marks, marks[:200]), "soft_cap": 4.0}),
        ("nvfp4", {"bias": jnp.asarray(np.random.default_rng(0).normal(size=(300, 200)))}),
    ):
        run = functools.partial(lowbit_attention, precision=low.PRECISIONS[name], **given)
        whole = run(q, k, v)
        with monkeypatch.context() as patch:
            patch.setattr("jaxinf_kernels.lowbit_attention.xla.WHOLE", 1)
            patch.setattr("jaxinf_kernels.lowbit_attention.xla.BLOCK", 128)
            jax.clear_caches()
            np.testing.assert_allclose(run(q, k, v), whole, rtol=1e-5, atol=1e-6)
        jax.clear_caches()


def test_vmap_is_a_loop():
    examples = [inputs(seed, dtype=jnp.float32) for seed in range(3)]
    q, k, v = (jnp.stack(a) for a in zip(*examples, strict=True))
    run = functools.partial(lowbit_attention, precision=low.NV4, mask=masks.causal(40))
    mapped = jax.jit(jax.vmap(run))(q, k, v)
    np.testing.assert_allclose(mapped, [run(*e) for e in examples], rtol=1e-5, atol=1e-6)
    shared = jax.vmap(run, in_axes=(0, None, None))(q, k[0], v[0])
    np.testing.assert_allclose(shared, [run(a, k[0], v[0]) for a in q], rtol=1e-5, atol=1e-6)


def test_examples_on_eight_devices():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    examples = [inputs(seed, n=24, m=40, dtype=jnp.float32) for seed in range(8)]
    q, k, v = (jnp.stack(a) for a in zip(*examples, strict=True))
    run = jax.vmap(functools.partial(lowbit_attention, precision=low.SAGE8))
    spec = jax.sharding.PartitionSpec("x")
    split = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec))
    np.testing.assert_allclose(split(q, k, v), run(q, k, v), rtol=1e-6, atol=1e-6)

    def total(f):
        return jax.grad(lambda *a: jnp.sum(f(*a) ** 2), argnums=(0, 1, 2))

    for a, b in zip(total(split)(q, k, v), total(run)(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_chip_chooses():
    q, k, v = inputs(12, n=64, m=64, dtype=jnp.float32)
    for chip, precision in (
        ("v4", None), ("v5e", low.SAGE8), ("v5p", None), ("v6e", None),
        ("tpu7x", None), ("h100", low.SAGE8), ("b200", low.FP8), (None, None),
    ):  # fmt: skip
        found = lowbit_attention(q, k, v, chip=chip)
        expected = (
            room.attention(q, k, v)
            if precision is None
            else lowbit_attention(q, k, v, precision=precision)
        )
        np.testing.assert_array_equal(found, expected)


def test_a_mask_for_each_head():
    q, k, v = inputs(13, heads=4, groups=2, dtype=jnp.float32)
    seen = jnp.asarray(np.random.default_rng(2).random((4, 160, 200)) < 0.5)
    found = lowbit_attention(q, k, v, precision=low.SAGE8, mask=seen)
    assert error(found, room.reference(q, k, v, mask=seen)[0]) <= Q_GATES["sage8"][0]


def test_nothing_to_see():
    q, k, v = inputs(14, dtype=jnp.float32)
    out, lse = lowbit_attention(q, k[:0], v[:0], precision=low.SAGE8, return_lse=True)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(lse, -np.inf)


def test_bad_arguments_name_the_mend():
    q, k, v = inputs(15)
    run = functools.partial(lowbit_attention, precision=low.SAGE8)
    with pytest.raises(TypeError, match="astype"):
        run(q, k, v.astype(jnp.float32))
    with pytest.raises(TypeError, match="float32"):
        run(*(a.astype(jnp.float8_e4m3fn) for a in (q, k, v)))
    with pytest.raises(ValueError, match="repeat"):
        run(q, *(jnp.repeat(a, 3, axis=1) for a in (k, v)))
    with pytest.raises(ValueError, match="no chip"):
        run(q, k, v, chip="v3")
    with pytest.raises(ValueError, match="soft_cap"):
        run(q, k, v, soft_cap=-1.0)
    with pytest.raises(ValueError, match="tokens"):
        low.Precision(low.SAGE8.qk, tokens=0)
    with pytest.raises(ValueError, match="E5M2"):
        low.Precision(low.SAGE8.qk, gradients=low.MX8.qk)
    with pytest.raises(NotImplementedError, match="leave it out"):
        run(q, k, v, implementation="tpu")
