"""The TPU's kernels, interpreted, beside float64 of what they are given."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jaxinf_kernels.formats import INT8, quantise
from jaxinf_kernels.grouped_matmul import Blocks, tpu, xla
from jaxinf_kernels.grouped_matmul.problem import Problem
from jaxinf_kernels.operation import How, Rule

BLOCKS = Blocks(rows=32, depth=128, columns=128, inner=128, side=128)
STRICT = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
CASES = {
    "shared blocks, empty groups, rows to spare": (70, 136, 140, [10, 0, 32, 7, 12]),
    "all empty": (64, 128, 128, [0, 0]),
    "one group": (50, 130, 40, [50]),
    "whole blocks": (96, 128, 256, [32, 64]),
    "first and last empty": (70, 64, 130, [0, 33, 0]),
}


def spec_of(form=None, held=False, chip="v5e"):
    return Problem(form, held, How(None, chip, BLOCKS))


def arrays(case, seed=0, outliers=False):
    n, k, m, sizes = CASES[case]
    rng = np.random.default_rng(seed)
    x, w, dy = (rng.normal(size=s) for s in ((1, n, k), (1, len(sizes), k, m), (1, n, m)))
    if outliers:
        x[:, ::7] *= 20
    return x, w, dy, jnp.asarray([sizes], jnp.int32)


def exact(x, w, dy, sizes):
    """Values and both cotangents in float64, group by group."""
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    y, dx, dw = np.zeros((*x.shape[:2], w.shape[3])), np.zeros(x.shape), np.zeros(w.shape)
    for b in range(x.shape[0]):
        row = 0
        for g, size in enumerate(np.asarray(sizes[min(b, len(sizes) - 1)])):
            own, c = slice(row, row + size), min(b, len(w) - 1)
            y[b, own] = x[b, own] @ w[c, g]
            dx[b, own] = dy[b, own] @ w[c, g].T
            dw[c, g] += x[b, own].T @ dy[b, own]
            row += size
    return y, dx, dw


def check(a, b, bound):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.all(np.isfinite(a))
    assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b)


def pull(module, arrays, y, dy, spec, active, **options):
    return module.pull(*arrays, y, dy, spec=Rule(spec, active, 1), **options)


FLOAT32, BFLOAT16 = (jnp.float32, (2e-6, 1e-5)), (jnp.bfloat16, (2.5e-3, 8e-3))


@pytest.mark.parametrize(
    ("case", "dtype", "bounds"),
    [*((case, *FLOAT32) for case in CASES), *((case, *BFLOAT16) for case in list(CASES)[:2])],
)
def test_kernels_are_the_products_of_what_they_are_given(case, dtype, bounds):
    *given, sizes = arrays(case)
    x, w, dy = (jnp.asarray(a, dtype) for a in given)
    (y,) = tpu.multiply(x, w, sizes, spec=spec_of(), interpret=STRICT)
    active = (True, True, False)
    dx, dw = pull(tpu, (x, w, sizes), y, dy, spec_of(), active, interpret=STRICT)
    assert y.dtype == dx.dtype == dw.dtype == dtype
    for found, expected, bound in zip(
        (y, dx, dw), exact(x, w, dy, sizes), (bounds[0], bounds[1], bounds[1]), strict=True
    ):
        check(found, expected, bound)


@pytest.mark.parametrize(
    ("case", "chip"), [*((case, "v5e") for case in CASES), (next(iter(CASES)), "v4")]
)
def test_int8_sums_are_exact_and_only_scales_round(case, chip):
    x, w, _, sizes = arrays(case)
    x, w = (jnp.asarray(a, jnp.float32) for a in (x, w))
    q, held = quantise(x, INT8), quantise(w, INT8, axis=-2)
    given = (x, held.elements, held.scales, sizes)
    (y,) = tpu.multiply(*given, spec=spec_of(INT8, True, chip), interpret=STRICT)
    fine = [
        np.asarray(a.elements, np.float64) * np.asarray(a.scales, np.float64) for a in (q, held)
    ]
    check(y, exact(*fine, np.zeros(y.shape), sizes)[0], 2e-6)
    (plain,) = xla.multiply(*given, spec=spec_of(INT8, True))
    np.testing.assert_allclose(y, plain, rtol=1e-6)


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_int8_is_close_to_exact_products(seed, outliers):
    case = next(iter(CASES))
    x, w, dy, sizes = arrays(case, seed, outliers)
    given = (jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), sizes)
    (y,) = tpu.multiply(*given, spec=spec_of(INT8), interpret=STRICT)
    check(y, exact(x, w, dy, sizes)[0], 0.015)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_int8_gradients_are_those_of_the_plain_form(dtype, held):
    x, w, dy, sizes = arrays(next(iter(CASES)))
    x, w, dy = (jnp.asarray(a, dtype) for a in (x, w, dy))
    q = quantise(w, INT8, axis=-2)
    given = (x, q.elements, q.scales, sizes) if held else (x, w, sizes)
    active = (True, False, True, False) if held else (True, True, False)
    spec = spec_of(INT8, held)
    y = xla.multiply(*given, spec=spec)
    found = pull(tpu, given, *y, dy, spec, active, interpret=STRICT)
    for a, b in zip(found, pull(xla, given, *y, dy, spec, active), strict=True):
        assert a.dtype == b.dtype
        check(a, b, 1e-5 if dtype == jnp.float32 else 8e-3)


@pytest.mark.parametrize("shared", ["w", "sizes", "x"])
def test_what_serves_a_batch_is_read_for_all_of_it(shared):
    examples = [arrays(next(iter(CASES)), seed) for seed in (0, 1)]
    x, w, dy, sizes = (np.concatenate(a) for a in zip(*examples, strict=True))
    sizes = sizes + np.array([[0] * 5, [3, 1, -30, 0, 9]])
    parts = {"x": x[: 1 if shared == "x" else 2], "w": w[: 1 if shared == "w" else 2],
             "sizes": sizes[: 1 if shared == "sizes" else 2]}  # fmt: skip
    given = [jnp.asarray(parts["x"], jnp.float32), jnp.asarray(parts["w"], jnp.float32),
             jnp.asarray(parts["sizes"], jnp.int32)]  # fmt: skip
    dy = jnp.asarray(dy, jnp.float32)
    (y,) = tpu.multiply(*given, spec=spec_of(), interpret=STRICT)
    dx, dw = pull(tpu, given, y, dy, spec_of(), (True, True, False), interpret=STRICT)
    wide = [np.broadcast_to(given[0], (2, *given[0].shape[1:])), *given[1:]]
    expected = exact(wide[0], wide[1], dy, given[2])
    check(y, expected[0], 2e-6)
    check(dx, expected[1].sum(0, keepdims=True) if shared == "x" else expected[1], 1e-5)
    check(dw, expected[2], 1e-5)


def test_numbers_of_no_group_or_another_do_not_leak():
    x, w, dy, _ = arrays(next(iter(CASES)))
    sizes = jnp.asarray([[20, 30, 0, 3, 2]], jnp.int32)
    x, w, dy = (jnp.asarray(a, jnp.float32) for a in (x, w, dy))
    bad = jnp.where(jnp.arange(70) >= 55, jnp.nan, 0)[None, :, None]

    def all_of(x, w, dy):
        (y,) = tpu.multiply(x, w, sizes, spec=spec_of(), interpret=STRICT)
        active = (True, True, False)
        return y, *pull(tpu, (x, w, sizes), y, dy, spec_of(), active, interpret=STRICT)

    clean = all_of(x, w, dy)
    for a, b in zip(clean, all_of(x + bad, w.at[:, 2].set(jnp.nan), dy + bad), strict=True):
        np.testing.assert_array_equal(a, b)  # and so they are the same in every run
    assert np.all(np.asarray(clean[0][:, 55:]) == 0)
    assert np.all(np.asarray(clean[2][:, 2]) == 0)
