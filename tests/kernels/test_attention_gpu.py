"""Attention's kernels for GPUs, interpreted, against float64: values, gradients and refusals."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from in_float64 import apart, exactly
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxinf_kernels.attention import attention, masks, on_gpu, xla
from jaxinf_kernels.attention.api import prepare
from jaxinf_kernels.attention.gpu_blackwell_backward import Pass
from jaxinf_kernels.attention.gpu_blocks import LARGEST, Blocks, lines
from jaxinf_kernels.attention.schedule import Sizes
from jaxinf_kernels.operation import How, Rule

INTERPRETED = plgpu.InterpretGPUParams(detect_races=True)
VALUE = jax.jit(partial(on_gpu.attend, interpret=INTERPRETED), static_argnames="spec")
PULL = jax.jit(partial(on_gpu.pull, interpret=INTERPRETED), static_argnames="spec")
OUT, GRADIENT = 2.5e-3, 8e-3
"""Bounds of errors in units of the norm."""


def draw(rng, *shape, dtype="float32"):
    return jnp.asarray(rng.normal(size=shape), dtype)


def rich(rng, n, m, heads):
    """Everything at once, the end of the rows without keys."""
    ids = jnp.arange(n) // 50, jnp.arange(m) // 70
    mask = (masks.causal(60) & masks.lengths(120, jnp.asarray(180)) & masks.chunks(64)) | (
        masks.segments(*ids) & masks.window(30, 30) & masks.lengths(140)
    )
    return {
        "mask": mask, "bias": draw(rng, heads, n, m), "alibi": draw(rng, heads) ** 2,
        "soft_cap": 3.0,
    }  # fmt: skip


def known(rng, n, m, heads):
    """A mask that is known, with full blocks and empty ones."""
    return {"mask": masks.causal(m - n) & ~masks.prefix(3), "sinks": draw(rng, heads)}


def cells(rng, n, m, heads):
    return {"mask": masks.cells(jnp.asarray(rng.random((n, m)) < 0.5))}


def nothing(rng, n, m, heads):
    return {"mask": masks.lengths(100, 0) | masks.lengths(50, 7)}


CASES = {
    # n, m, heads, groups, d, e, dtype, blocks, options
    "everything": (100, 200, 2, 1, 64, 128, "bfloat16", Blocks(), rich),
    "causal, many visits": (
        100, 400, 1, 1, 64, 64, "bfloat16", Blocks(stages=2, back_stages=2), known
    ),
    "any cells, odd dimensions": (
        70, 130, 2, 1, 72, 40, "float16", Blocks(stages=1, back_stages=1), cells
    ),
    "one warpgroup, rows without keys": (
        120, 100, 1, 1, 64, 64, "bfloat16", Blocks(rows=64, columns=64), nothing
    ),
    "wide heads": (64, 140, 1, 1, 200, 256, "bfloat16", Blocks(), cells),
}  # fmt: skip

BLACKWELL = CASES | {
    "two warpgroups, lines without pairs": (
        300, 300, 1, 1, 64, 64, "bfloat16", Blocks(), lambda *_: {"mask": masks.lengths(100, 120)}
    ),
    "narrow blocks": (100, 100, 2, 1, 192, 180, "bfloat16", Blocks(), known),
}  # fmt: skip


def setting(name, seed=0, outliers=False, chip="h200"):
    n, m, heads, groups, d, e, dtype, blocks, options = BLACKWELL[name]
    rng = np.random.default_rng(seed)
    q, k, v = (
        draw(rng, *shape, dtype=dtype) for shape in ((n, heads, d), (m, groups, d), (m, groups, e))
    )
    if outliers:
        k = k.at[:, :, 3].mul(8)
    empty = dict.fromkeys(("mask", "bias", "alibi", "sinks", "soft_cap"))
    how = How("gpu", chip, blocks)
    problem, given = prepare(q, k, v, **(empty | options(rng, n, m, heads)), scale=d**-0.5, how=how)
    cotangents = draw(rng, 1, heads, n, e, dtype=dtype), draw(rng, 1, heads, n)
    return problem, given, cotangents


def differentiated(problem, arrays):
    """Which operands the kernels differentiate."""
    bias, slopes, sinks = problem.given
    flags = [True] * 3 + [False] * (bias + slopes) + [True] * sinks
    return (*flags, *[False] * (len(arrays) - len(flags)))


def hold(found, out, lse):
    """Hold outputs to float64."""
    empty = ~np.isfinite(np.asarray(found[1]))
    assert (np.asarray(found[0])[empty] == 0).all()
    assert apart(found[0], out) < OUT
    np.testing.assert_allclose(np.where(empty, 0, found[1]), lse, atol=2e-3)


def compare(name, seed=0, outliers=False, again=False, chip="h200"):
    """Hold outputs and gradients to float64."""
    problem, given, cotangents = setting(name, seed, outliers, chip)
    arrays = problem.flat(given)
    assert on_gpu.refusal(problem, arrays) is None
    found = VALUE(*arrays, spec=problem)
    empty = ~np.isfinite(np.asarray(found[1]))
    cotangents = cotangents[0], jnp.where(jnp.asarray(empty), 0, cotangents[1])
    active = differentiated(problem, arrays)
    out, lse, gradients = exactly(problem, arrays, active, cotangents)
    hold(found, out, lse)
    rule = Rule(problem, active, 2)
    assert on_gpu.refusal(rule, arrays) is None
    back = PULL(*arrays, *found, *cotangents, spec=rule)
    assert len(back) == len(gradients)
    for ours, theirs in zip(back, gradients, strict=True):
        assert ours.shape == theirs.shape
        assert apart(ours, theirs) < GRADIENT
    if again:  # the same numbers
        chex.assert_trees_all_equal(VALUE(*arrays, spec=problem), found)
        chex.assert_trees_all_equal(PULL(*arrays, *found, *cotangents, spec=rule), back)


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    compare(name)


@pytest.mark.parametrize("name", BLACKWELL)
def test_values_and_gradients_on_blackwell(name):
    compare(name, chip="b200")


@pytest.mark.parametrize(("seed", "chip"), [(1, "h200"), (2, "h200"), (3, "b200")])
def test_outliers_and_the_same_numbers_again(seed, chip):
    name = "one warpgroup, rows without keys"
    compare(name, seed, outliers=True, again=True, chip=chip)


def test_equal_values_are_returned_as_they_are():
    problem, given, _ = setting("causal, many visits")
    given = given._replace(v=jnp.ones_like(given.v), sinks=jnp.full_like(given.sinks, -jnp.inf))
    out, lse = VALUE(*problem.flat(given), spec=problem)
    assert (np.asarray(out)[np.isfinite(np.asarray(lse))] == 1).all()


def test_weights_are_added_up_in_float32():
    """With one rounding, that of the weights, the same as the plain form's."""
    problem, given, _ = setting("causal, many visits")
    arrays = problem.flat(given._replace(q=given.q * 0))
    plain = xla.attend(*arrays, spec=problem)[1]
    found = VALUE(*arrays, spec=problem)[1]
    np.testing.assert_allclose(found, plain, rtol=1e-5)


@pytest.mark.parametrize("chip", ["h200", "b200"])
def test_batches_and_heads_do_not_meet(chip):
    rng = np.random.default_rng(5)
    lengths = jnp.asarray([[20], [60]])
    q, k, v = (draw(rng, 2, 2, 64, 64, dtype="bfloat16") for _ in range(3))
    empty = dict.fromkeys(("bias", "alibi", "sinks", "soft_cap"))
    mask = masks.lengths(keys=lengths[0, 0])
    one = (jnp.moveaxis(a[0], 0, 1) for a in (q, k, v))
    problem, given = prepare(*one, mask, **empty, scale=0.1, how=How("gpu", chip, Blocks(64)))

    def arrays(q, k, v, lengths):
        return problem.flat(given._replace(q=q, k=k, v=v, leaves=(lengths[:, 0],)))

    found = VALUE(*arrays(q, k, v, lengths), spec=problem)
    turned = VALUE(*arrays(*(a[::-1, ::-1] for a in (q, k, v)), lengths[::-1]), spec=problem)
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a[::-1, ::-1], turned), found)
    # keys that serve the whole batch are not repeated, and their cotangents are summed
    shared, active = arrays(q, k[:1], v[:1], lengths), (True, True, True, False)
    found = VALUE(*shared, spec=problem)
    cotangents = found[0], jnp.zeros_like(found[1])
    out, lse, gradients = exactly(problem, shared, active, cotangents)
    hold(found, out, lse)
    back = PULL(*shared, *found, *cotangents, spec=Rule(problem, active, 2))
    for ours, theirs in zip(back, gradients, strict=True):
        assert ours.shape == theirs.shape
        assert apart(ours, theirs) < GRADIENT


@pytest.mark.parametrize("length", [100, 1000])
def test_heads_have_room_on_blackwell(length):
    """Whatever their dimensions, at least in a pass for keys and one for values."""
    queries, keys = ("q", "d_out"), ("k", "v")
    passes = [Pass(queries, keys, ("q",)), *(Pass(keys, queries, (x,)) for x in keys)]
    for widths in itertools.product(range(64, LARGEST + 1, 64), repeat=2):
        for plan in passes:
            assert plan.fitting(length, widths, 2) is not None
    both = Pass(keys, queries, keys)
    assert both.fitting(length, (128, 128), 2).columns == 64
    assert both.fitting(length, (256, 256), 2) is None


@pytest.mark.parametrize("given", [True, False])
def test_a_line_has_its_full_blocks_first(given):
    """Whether the mask is known or a leaf says it, what is empty is not visited."""
    n, block = 640, 64
    offset = jnp.asarray(0) if given else 0
    q = jnp.zeros((n, 1, 8), jnp.bfloat16)
    mask = masks.causal(offset) & ~masks.causal(jnp.asarray(-200) if given else -200)
    problem, operands = prepare(q, q, q, mask, None, None, None, None, 1.0, How())
    for by_rows in (True, False):
        sizes = Sizes(n, n, block, block)
        ends, places = (np.asarray(a[0]) for a in lines(problem, operands, sizes, by_rows))
        dense = np.asarray(mask.dense(n, n)).reshape(10, 64, 10, 64)
        kinds = dense.any((1, 3)) + dense.all((1, 3)).astype(int)
        kinds = kinds if by_rows else kinds.T
        assert sorted(ends[:, 0]) == list(range(10))
        for line, begin, middle, end in ends:
            assert set(places[begin:middle]) == set(np.flatnonzero(kinds[line] == 2))
            assert set(places[middle:end]) == set(np.flatnonzero(kinds[line] == 1))
        if not given:
            counts = ends[:, 3] - ends[:, 1]
            assert (np.diff(counts) <= 0).all()


def shaped(d=64, dtype=jnp.bfloat16, n=256):
    return jax.ShapeDtypeStruct((n, 2, d), dtype)


def lowered(function, *arrays):
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


REFUSED = {
    "float32": (shaped(dtype=jnp.float32), "h200", "cast with astype"),
    "wide": (shaped(257), "h200", "up to 256: divide heads"),
    "empty": (shaped(n=0), "h200", "there are no queries"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    like, chip, words = REFUSED[name]
    with pytest.raises(NotImplementedError, match=words):
        lowered(partial(attention, implementation="gpu", chip=chip), like, like, like)
    assert "mosaic_gpu" not in lowered(partial(attention, chip=chip), like, like, like)


@pytest.mark.parametrize(("name", "chip"), [("bias", "h200"), ("alibi", "h200"), ("bias", "b200")])
def test_derivatives_that_the_kernel_does_not_have(name, chip):
    """The reverse rule is then the plain form's."""
    extra = jnp.zeros((256, 256) if name == "bias" else (2,))

    def loss(wrt, x, extra):
        extra = extra if wrt else jax.lax.stop_gradient(extra)
        out = attention(x, x, x, implementation="gpu", chip=chip, **{name: extra})
        return jnp.sum(out.astype(jnp.float32))

    for wrt, kernels in ((False, 3), (True, 1)):
        text = lowered(jax.grad(partial(loss, wrt), (0, 1)), shaped(), extra)
        assert text.count("custom_call @mosaic_gpu") == kernels
