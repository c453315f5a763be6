"""Attention's kernels for TPUs, interpreted, against float64: values and gradients."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from in_float64 import apart, exactly
from jax.experimental.pallas import tpu as pltpu
from jaxinf_kernels.attention import masks, tpu, tpu_backward
from jaxinf_kernels.attention.api import prepare
from jaxinf_kernels.operation import How

N, M = 200, 300
INTERPRETED = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
# Errors in units of the norm: of outputs, of gradients.
BOUNDS = {"float32": (2e-6, 1e-5), "bfloat16": (2.5e-3, 8e-3)}


def draw(rng, *shape, dtype="float32"):
    return jnp.asarray(rng.normal(size=shape), dtype)


def rich(rng, heads):
    """Everything at once."""
    ids = jnp.arange(N) // 50, jnp.arange(M) // 70
    mask = (masks.causal(100) & masks.lengths(180, jnp.asarray(280))) | (
        masks.segments(*ids) & masks.window(30, 30)
    )
    return {
        "mask": mask, "bias": draw(rng, heads, N, M), "alibi": draw(rng, heads) ** 2,
        "sinks": draw(rng, heads), "soft_cap": 3.0,
    }  # fmt: skip


CASES = {
    # heads, groups, d, e, blocks, options
    "everything": (4, 2, 64, 128, tpu.Blocks(128, 256, 128), rich),
    "rows without keys": (
        2, 2, 128, 128, tpu.Blocks(128, 128, 128),
        lambda rng, heads: {"mask": masks.lengths(100, 0) | masks.lengths(50, 7)},
    ),
    "any cells, odd dimensions": (
        2, 1, 192, 80, tpu.Blocks(128, 128, 128),
        lambda rng, heads: {"mask": masks.cells(rng.random((N, M)) < 0.5)},
    ),
    "no mask": (1, 1, 128, 128, tpu.Blocks(128, 256, 256), lambda rng, heads: {}),
    "sums in idle columns": (
        2, 1, 64, 128, tpu.Blocks(128, 256, 128),
        lambda rng, heads: {"mask": masks.lengths(100, 9), "sinks": draw(rng, heads)},
    ),
    "half of them": (
        2, 1, 64, 64, tpu.Blocks(128, 256, 128),
        lambda rng, heads: {"mask": masks.causal(), "sinks": draw(rng, heads)},
    ),
}  # fmt: skip


def setting(name, dtype, seed=0, outliers=False):
    heads, groups, d, e, blocks, options = CASES[name]
    rng = np.random.default_rng(seed)
    q, k, v = (
        draw(rng, *shape, dtype=dtype) for shape in ((N, heads, d), (M, groups, d), (M, groups, e))
    )
    if outliers:
        k = k.at[:, :, 3].mul(8)
    empty = dict.fromkeys(("mask", "bias", "alibi", "sinks", "soft_cap"))
    how = How(chip="v6e" if name == "sums in idle columns" else None)
    problem, given = prepare(q, k, v, **(empty | options(rng, heads)), scale=d**-0.5, how=how)
    cotangents = draw(rng, 1, heads, N, e, dtype=dtype), draw(rng, 1, heads, N)
    return problem, given, blocks, cotangents


def exact(problem, given, cotangents):
    """Outputs and gradients of queries, keys, values and a bias in float64."""
    arrays = problem.flat(given)
    moving = 4 if problem.given[0] else 3
    return exactly(problem, arrays, [x < moving for x in range(len(arrays))], cotangents)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, dtype):
    problem, given, blocks, cotangents = setting(name, dtype)
    out, lse, gradients = exact(problem, given, cotangents)
    value = jax.jit(partial(tpu.attend, spec=problem, blocks=blocks, interpret=INTERPRETED))
    found = value(*problem.flat(given))
    bound, steep = BOUNDS[dtype]
    assert apart(found[0], out) < bound
    nothing = ~np.isfinite(np.asarray(found[1]))
    assert (np.asarray(found[0])[nothing] == 0).all()
    np.testing.assert_allclose(
        np.where(nothing, 0, found[1]), lse, atol=1e-5 if dtype == "float32" else 2e-3
    )
    cotangents = cotangents[0], jnp.where(jnp.asarray(nothing), 0, cotangents[1])
    pull = jax.jit(
        partial(
            tpu_backward.pull, problem, with_bias=problem.given[0], blocks=blocks,
            interpret=INTERPRETED,
        )
    )  # fmt: skip
    back = pull(given, found, cotangents)
    for ours, theirs in zip(back, gradients, strict=False):
        assert apart(ours, theirs) < steep
    again = value(*problem.flat(given))
    chex.assert_trees_all_equal(again, found)


@pytest.mark.parametrize("seed", [1, 2])
def test_outliers(seed):
    problem, given, blocks, cotangents = setting("no mask", "bfloat16", seed, outliers=True)
    out, _, gradients = exact(problem, given, cotangents)
    found = tpu.attend(*problem.flat(given), spec=problem, blocks=blocks, interpret=INTERPRETED)
    assert apart(found[0], out) < BOUNDS["bfloat16"][0]
    back = tpu_backward.pull(problem, given, found, cotangents, False, blocks, INTERPRETED)
    for ours, theirs in zip(back, gradients, strict=False):
        assert apart(ours, theirs) < BOUNDS["bfloat16"][1]


def test_equal_values_are_returned_as_they_are():
    problem, given, blocks, _ = setting("no mask", "bfloat16")
    given = given._replace(v=jnp.ones_like(given.v))
    out, _ = tpu.attend(*problem.flat(given), spec=problem, blocks=blocks, interpret=INTERPRETED)
    assert (out == 1).all()


def test_heads_and_batches_do_not_meet():
    problem, given, blocks, _ = setting("no mask", "bfloat16")
    rng = np.random.default_rng(5)
    q, k, v = (draw(rng, 3, 2, *a.shape[2:], dtype="bfloat16") for a in given[:3])

    def attend(q, k, v):
        return tpu.attend(q, k, v, spec=problem, blocks=blocks, interpret=INTERPRETED)

    found = attend(q, k, v)
    other = attend(*(a[::-1, ::-1] for a in (q, k, v)))
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a[::-1, ::-1], other), found)
    # keys that serve the whole batch are not repeated
    chex.assert_trees_all_equal(attend(q[:, :1], k[:1, :1], v[:1, :1])[0][0], attend(
        q[:1, :1], k[:1, :1], v[:1, :1])[0][0])  # fmt: skip


def test_long_sequences_are_cut_into_stretches(monkeypatch):
    ids = jnp.arange(N) // 60, jnp.arange(M) // 80
    rng = np.random.default_rng(0)
    q, k, v = (draw(rng, size, 1, 128) for size in (N, M, M))
    mask = masks.causal(90) & masks.segments(*ids)
    problem, given = prepare(q, k, v, mask, None, None, None, None, 0.1, How())
    cotangents = draw(rng, 1, 1, N, 128), jnp.zeros((1, 1, N))
    _, _, gradients = exact(problem, given, cotangents)
    blocks = tpu.Blocks(128, 128, 128)
    found = tpu.attend(*problem.flat(given), spec=problem, blocks=blocks, interpret=INTERPRETED)
    monkeypatch.setattr(tpu_backward, "RESIDENT", 4 * 128 * 128)
    back = tpu_backward.pull(problem, given, found, cotangents, False, blocks, INTERPRETED)
    for ours, theirs in zip(back, gradients, strict=False):
        assert apart(ours, theirs) < BOUNDS["float32"][1]
