from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxinf_kernels.chips import CHIPS
from jaxinf_kernels.formats import INT8, Quantised, quantise
from jaxinf_kernels.grouped_matmul import gpu
from jaxinf_kernels.grouped_matmul.gpu_blocks import Blocks
from jaxinf_kernels.grouped_matmul.problem import Operands, Problem
from jaxinf_kernels.operation import OPERATIONS, How, Rule, choose

INTERPRET = plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan")
SMALL = Blocks(64, 64, 2)
SIZES = [10, 0, 70, 3, 50]
"""Blocks with rows of several groups, of some of them, and of none."""


@contextmanager
def interpreted():
    """Run kernels on the CPU."""
    with plgpu.force_gpu_interpret_mode(INTERPRET):
        yield


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """A chip with three streaming multiprocessors: each has several tiles of a result."""
    for name, chip in CHIPS.items():
        monkeypatch.setitem(CHIPS, name, replace(chip, cores=3))


def inputs(seed=0, n=200, k=100, m=130, groups=5):
    rng = np.random.default_rng(seed)
    shapes = (n, k), (groups, k, m), (n, m)
    return (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in shapes)


def problem(form=None, held=False, how=None):
    return Problem(form, held, how or How(chip="h200", blocks=SMALL))


def multiply(x, w, sizes, form=None, how=None):
    """Multiply by the kernel, one example."""
    held = isinstance(w, Quantised)
    w = Quantised(w.elements[None], w.scales[None], None, INT8, -2) if held else w[None]
    spec = problem(form, held, how)
    with interpreted():
        return gpu.multiply(*spec.flat(Operands(x[None], w, sizes[None])), spec=spec)[0][0]


def cotangents(x, w, sizes, dy, active=(True, True, False)):
    """Return those of x and w by the kernels."""
    args = x[None], w[None], sizes[None], dy[None], dy[None]
    with interpreted():
        return [a[0] for a in gpu.pull(*args, spec=Rule(problem(), active, 1))]


def groups_of(sizes):
    ends = np.cumsum(sizes)
    return [slice(int(e - s), int(e)) for s, e in zip(sizes, ends, strict=True)]


def relative(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def exact(x, w, sizes):
    """Return products in float64."""
    x, w = (np.asarray(a, np.float64) for a in (x, w))
    out = np.zeros((len(x), w.shape[2]))
    for g, rows in enumerate(groups_of(sizes)):
        out[rows] = x[rows] @ w[g]
    return out


@pytest.mark.parametrize("sizes", [SIZES, [64, 64, 0, 0, 72], [0, 0, 0, 0, 0]])
def test_rows_are_multiplied_by_the_matrix_of_their_group(sizes):
    x, w, _ = inputs()
    found = multiply(x, w, jnp.asarray(sizes))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[sum(sizes) :], 0)
    if sum(sizes):
        assert relative(found, exact(x, w, sizes)) <= 2.5e-3


def test_whole_numbers_are_summed_exactly():
    x, w, _ = inputs(1, k=260, m=70)
    x = x.astype(jnp.float32)
    sizes, q = jnp.asarray(SIZES), quantise(x, INT8)
    held = quantise(w, INT8, axis=-2)
    total = exact(q.elements, held.elements, SIZES).astype(np.float32)
    scales = np.zeros((200, 70), np.float32)
    for g, rows in enumerate(groups_of(SIZES)):
        scales[rows] = held.scales[g]
    expected = total * np.asarray(q.scales) * scales
    np.testing.assert_array_equal(multiply(x, held, sizes, INT8), expected)
    np.testing.assert_array_equal(multiply(x, w.astype(jnp.float32), sizes, INT8), expected)


@pytest.mark.parametrize("form", [None, INT8])
def test_sums_in_tensor_memory_are_the_same(form):
    x, w, _ = inputs(5, n=300, m=70)
    sizes = [10, 0, 170, 3, 50]  # a block of which no row has a group is not summed
    how = How(chip="b200", blocks=Blocks(128, 64, 2))
    found = multiply(x, w, jnp.asarray(sizes), form, how)
    np.testing.assert_array_equal(found[233:], 0)
    if form is None:
        assert relative(found, exact(x, w, sizes)) <= 2.5e-3
        return
    np.testing.assert_array_equal(found, multiply(x, w, jnp.asarray(sizes), form))


def test_cotangents_are_those_of_the_products():
    x, w, dy = inputs(2)
    dx, dw = cotangents(x, w, jnp.asarray(SIZES), dy)
    assert dx.dtype == dw.dtype == jnp.bfloat16
    expected = exact(dy, np.swapaxes(np.asarray(w, np.float64), 1, 2), SIZES)
    assert relative(dx, expected) <= 2.5e-3
    x, dy = (np.asarray(a, np.float64) for a in (x, dy))
    expected = np.stack([x[rows].T @ dy[rows] for rows in groups_of(SIZES)])
    assert relative(dw, expected) <= 2.5e-3
    np.testing.assert_array_equal(dw[1], 0)


def test_rows_of_one_group_are_nothing_to_the_others():
    x, w, dy = inputs(3, k=64, m=64)
    sizes = jnp.asarray(SIZES)
    first, second = cotangents(x, w, sizes, dy), multiply(x, w, sizes)
    bad = jnp.arange(200)[:, None]
    bad = ((bad >= 10) & (bad < 80)) | (bad >= 133)  # group 2, and rows of none
    x, dy = (jnp.where(bad, jnp.nan, a) for a in (x, dy))
    found = cotangents(x, w, sizes, dy)
    kept = np.asarray(~bad[:, 0])
    np.testing.assert_array_equal(found[0][kept], first[0][kept])
    np.testing.assert_array_equal(found[0][133:], 0)
    others = np.array([0, 1, 3, 4])
    np.testing.assert_array_equal(found[1][others], first[1][others])
    assert bool(jnp.all(jnp.isnan(found[1][2])))
    np.testing.assert_array_equal(multiply(x, w, sizes)[kept], second[kept])


def test_either_side_may_serve_a_batch():
    x, w, _ = inputs(4, n=70, k=64, m=64, groups=2)
    xs, ws = jnp.stack([x, -2 * x]), jnp.stack([w, w[::-1]])
    sizes = jnp.asarray([[30, 20], [1, 69]])
    for a, b, c in ((xs, ws[:1], sizes[:1]), (xs[:1], ws, sizes)):
        with interpreted():
            found = gpu.multiply(a, b, c, spec=problem())[0]
        for i in range(2):
            one = [v[i % len(v)] for v in (a, b, c)]
            assert relative(found[i], exact(*one)) <= 2.5e-3


def chosen(x, w, form=None, implementation="gpu", chip="h200"):
    """Return what a program for a GPU holds."""
    spec = problem(form, how=How(implementation, chip))
    primitive = next(p for p in OPERATIONS if p.name == "grouped_matmul")
    sizes = jax.ShapeDtypeStruct((1, w.shape[0]), jnp.int32)
    return choose(primitive, spec, (x[None], w[None], sizes), "cuda")


def test_what_is_taken_and_what_is_refused():
    x, w, _ = inputs()
    single = x.astype(jnp.float32), w.astype(jnp.float32)
    assert chosen(x, w).kernel is not None
    assert chosen(*single, form=INT8).kernel is not None
    assert chosen(x, w, chip="b200").kernel is not None
    assert "never run" in chosen(x, w, implementation=None).why
    cases = [
        (lambda: chosen(*single), "INT8"),
        (lambda: chosen(x[:0], w), "nothing"),
        (lambda: chosen(x, w, chip="v5e"), "no kernel for v5e"),
    ]
    for call, text in cases:
        with pytest.raises(NotImplementedError, match=text):
            call()
