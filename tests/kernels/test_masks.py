"""Masks against what they say, and what they say of blocks against their cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxinf_kernels.attention import masks
from jaxinf_kernels.attention.masks import EMPTY, FULL, MIXED, Span
from jaxinf_kernels.attention.problem import Problem
from jaxinf_kernels.attention.schedule import FIRST, LAST, Sizes, at_run_time, schedule
from jaxinf_kernels.operation import How

N, M = 24, 32
I, J = np.arange(N)[:, None], np.arange(M)[None]
ROWS, COLUMNS = np.arange(N) // 7, np.arange(M) // 9
RANDOM = np.random.default_rng(0).random((N, M)) < 0.5

CASES = {
    "causal": (masks.causal(), J <= I),
    "causal, later rows": (masks.causal(M - N), J <= I + M - N),
    "causal, a leaf": (masks.causal(jnp.asarray(3)), J <= I + 3),
    "window": (masks.window(4), (J <= I) & (J >= I - 4)),
    "two-sided window": (masks.window(4, 2, 1), (J <= I + 3) & (J >= I - 3)),
    "window after": (masks.window(None, 2), J <= I + 2),
    "window before": (masks.window(3, None), J >= I - 3),
    "chunks": (masks.chunks(5), I // 5 == J // 5),
    "prefix": (masks.causal() | masks.prefix(6), (J <= I) | (J < 6)),
    "lengths": (masks.lengths(10, 15), (I < 10) & (J < 15)),
    "lengths, leaves": (masks.lengths(jnp.asarray(10), jnp.asarray(15)), (I < 10) & (J < 15)),
    "rows alone": (masks.lengths(queries=5), (I < 5) & (J >= 0)),
    "segments": (
        masks.segments(jnp.asarray(ROWS), jnp.asarray(COLUMNS)),
        ROWS[:, None] == COLUMNS[None],
    ),
    "cells": (masks.cells(RANDOM), RANDOM),
    "cells, a leaf": (masks.cells(jnp.asarray(RANDOM)), RANDOM),
    "not": (~masks.causal(), J > I),
    "nothing": (masks.lengths(0, 0), np.zeros((N, M), bool)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mask_is_what_it_says(name):
    mask, wanted = CASES[name]
    np.testing.assert_array_equal(mask.dense(N, M), np.broadcast_to(wanted, (N, M)))


def drawn(rng, depth):
    """A random mask of the others."""
    names = list(CASES)
    if depth == 0 or rng.random() < 0.3:
        return CASES[names[rng.integers(len(names))]]
    (a, x), (b, y) = drawn(rng, depth - 1), drawn(rng, depth - 1)
    kind = rng.integers(3)
    if kind == 0:
        return a & b, x & y
    return (a | b, x | y) if kind == 1 else (~a & b, ~x & y)


def problem(mask):
    tree = jax.tree.structure(mask)
    return Problem(tree, mask.kinds, (False,) * 3, 1.0, None, How())


@pytest.mark.parametrize("seed", range(40))
def test_blocks_are_never_called_what_they_are_not(seed):
    """With leaves unknown, and known: EMPTY and FULL are true, and a schedule visits all cells."""
    rng = np.random.default_rng(seed)
    mask, wanted = drawn(rng, 3)
    wanted = np.broadcast_to(wanted, (N, M))
    np.testing.assert_array_equal(mask.dense(N, M), wanted)
    rows, columns = int(rng.choice([4, 8, 5])), int(rng.choice([4, 16, 7]))
    sizes = Sizes(N, M, rows, columns)
    spec = problem(mask)
    for by_rows in (True, False):
        plan = schedule(spec, sizes, by_rows)
        kinds = np.asarray(
            at_run_time(spec, tuple(a[None] for a in jax.tree.leaves(mask)), plan, sizes)
        )[0]
        visited = np.zeros_like(wanted)
        for i, j, host, kind in zip(
            plan.rows, plan.columns, plan.kinds & 3, kinds & 3, strict=True
        ):
            block = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            for said in (host, kind):
                if said == EMPTY:
                    assert not wanted[block].any()
                if said == FULL:
                    assert wanted[block].all()
                    assert j * columns + columns <= M
            visited[block] |= kind != EMPTY
        assert (visited | ~wanted).all()
        lines = plan.rows if by_rows else plan.columns
        assert sorted(set(lines)) == list(
            range(-(-(N if by_rows else M) // (rows if by_rows else columns)))
        )
        changes = np.flatnonzero(np.diff(lines)) + 1
        np.testing.assert_array_equal(np.flatnonzero(plan.kinds & FIRST), [0, *changes])
        np.testing.assert_array_equal(
            np.flatnonzero(plan.kinds & LAST), [*(changes - 1), len(lines) - 1]
        )


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        (masks.causal(), 10),  # of 16: six above the diagonal are not visited
        (masks.window(7), 7),
        (masks.window(15), 9),
        (masks.chunks(16), 8),
        (masks.causal() & masks.chunks(16), 6),
        (masks.causal() | masks.prefix(8), 10),
        (masks.cells(np.eye(32, dtype=bool)), 4),
    ],
)
def test_empty_blocks_are_not_visited(mask, count):
    assert len(schedule(problem(mask), Sizes(32, 32, 8, 8), True).rows) == count


def test_full_blocks_are_not_masked():
    plan = schedule(problem(masks.causal()), Sizes(32, 32, 8, 8), True)
    np.testing.assert_array_equal(plan.kinds & 3 == FULL, plan.rows > plan.columns)
    ids = jnp.repeat(jnp.arange(4), 8)
    mask = masks.segments(ids)
    spec, sizes = problem(mask), Sizes(32, 32, 8, 8)
    plan = schedule(spec, sizes, True)
    assert (plan.kinds & 3 == MIXED).all()
    kinds = at_run_time(spec, (ids[None], ids[None]), plan, sizes)[0] & 3
    np.testing.assert_array_equal(kinds, np.where(plan.rows == plan.columns, FULL, EMPTY))


def test_a_stretch_of_rows_is_masked_by_its_positions():
    whole = schedule(problem(masks.causal()), Sizes(32, 32, 8, 8), True)
    part = schedule(problem(masks.causal()), Sizes(16, 32, 8, 8, first=16), True)
    later = whole.rows >= 2
    np.testing.assert_array_equal(part.columns, whole.columns[later])
    np.testing.assert_array_equal(part.kinds, whole.kinds[later])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masks.window(-1), "no fewer than 0"),
        (lambda: masks.window(None, None), "leave the mask out"),
        (lambda: masks.chunks(0), "at least one position"),
        (lambda: masks.lengths(), "queries, of keys, or both"),
        (lambda: masks.causal(jnp.zeros(3, int)), "one whole number"),
        (lambda: masks.segments(jnp.zeros((2, 3), int)), "jax.vmap"),
        (lambda: masks.cells(jnp.zeros(3, bool)), "rows and columns"),
        (lambda: masks.cells(jnp.ones((3, 4), bool)).check(3, 5), r"\(3, 5\) belongs"),
    ],
)
def test_bad_masks_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_spans_of_one_number_decide():
    one = Span(np.array([3]), np.array([3]))
    for shift, said in ((0, FULL), (-1, EMPTY)):
        assert masks.causal(shift).blocks(one, one) == said
