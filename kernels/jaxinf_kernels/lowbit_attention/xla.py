"""Low-bit attention in JAX's own operations: the kernel's numbers, on every platform.

Numbers are rounded where the kernel rounds them, and derivatives pass through the rounding
straight: those of attention at the rounded numbers. Weights are relative to the largest logit
rounded up to a power of two, so that rounding them does not depend on how a kernel goes about.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinf_kernels.attention.masks import CELL, ROW
from jaxinf_kernels.attention.problem import Operands, Problem, score
from jaxinf_kernels.attention.xla import BLOCK, WHOLE, _seen
from jaxinf_kernels.lowbit_attention.precision import TOKENS, Precision
from jaxinf_kernels.lowbit_attention.prepare import (
    added,
    filled,
    numbers,
    prepare,
    products,
    smoothed,
)
from jaxinf_kernels.lowbit_attention.problem import LowBit
from jaxinf_kernels.lowbit_attention.weights import block_top, rounded

LOG2E = float(np.log2(np.e))


class Rows(NamedTuple):
    """What belongs to queries, all of them or a block."""

    q: Array
    """[B, H, N, D]"""
    shift: Array | None
    """[B, H, N]"""
    base: Array | None
    """[B, H, N / 128, M]"""
    bias: Array | None
    """[B, H or 1, N, M]"""
    leaves: tuple[Array, ...]
    """The mask's."""


def attend(*arrays: Array, spec: LowBit) -> tuple[Array, Array]:
    """Return outputs [B, H, N, E] and the logarithms of the softmax's sums [B, H, N]."""
    given = spec.asked.operands(arrays)
    (_, heads, n, _), m = given.q.shape, given.k.shape[2]
    batch = max(a.shape[0] for a in arrays)
    if n == 0 or m == 0:
        out = jnp.zeros((batch, heads, n, given.v.shape[3]), given.v.dtype)
        return out, jnp.full((batch, heads, n), -jnp.inf, jnp.float32)
    rows, k, v = _straight(spec, given)
    one = partial(_rows, spec, given, k, v)
    if batch * heads * n * m <= WHOLE:
        out, lse = one(jnp.arange(n), rows)
    else:
        block = max(TOKENS, min(n, BLOCK // (batch * heads * m)) // TOKENS * TOKENS)
        out, lse = by_blocks(spec.asked, one, rows, n, block)
        out, lse = (jnp.moveaxis(a, 0, 2) for a in (out, lse))
        out = out.reshape(*out.shape[:2], -1, out.shape[-1])[:, :, :n]
        lse = lse.reshape(*lse.shape[:2], -1)[:, :, :n]
    out = jnp.broadcast_to(out, (batch, *out.shape[1:]))
    return out, jnp.broadcast_to(lse, (batch, *lse.shape[1:]))


def _straight(spec: LowBit, given: Operands) -> tuple[Rows, Array, Array]:
    """Return the rounded numbers, with the derivatives of those that were rounded."""
    ready = prepare(spec.precision, *given[:3])
    smooth = smoothed(spec.precision, given.q, given.k)
    q = through(smooth.q, numbers(ready.q))
    k = through(smooth.k, numbers(ready.k))
    v = through(given.v.astype(jnp.float32), numbers(ready.v, values=True))
    return Rows(q, *added(smooth, given.q), given.bias, given.leaves), k, v


def through(x: Array, fixed: Array) -> Array:
    """Return the fixed numbers, with x's derivative."""
    return jax.lax.stop_gradient(fixed) + (x - jax.lax.stop_gradient(x))


def by_blocks(problem: Problem, function: Any, rows: Rows, n: int, block: int) -> Any:
    """Go over blocks of rows; results have the blocks in front."""
    count = -(-n // block)

    def cut(a: Array | None, axis: int, size: int) -> Any:
        if a is None:
            return None
        pad = [(0, 0)] * a.ndim
        pad[axis] = (0, count * size - a.shape[axis])
        a = jnp.pad(a, pad).reshape(*a.shape[:axis], count, size, *a.shape[axis + 1 :])
        return jnp.moveaxis(a, axis, 0)

    own = [kind in (ROW, CELL) for kind in problem.kinds]
    moving = Rows(
        cut(rows.q, 2, block), cut(rows.shift, 2, block), cut(rows.base, 2, block // TOKENS),
        cut(rows.bias, 2, block),
        tuple(cut(a, 1, block) for a, mine in zip(rows.leaves, own, strict=True) if mine),
    )  # fmt: skip

    @partial(jax.checkpoint, prevent_cse=False)
    def one(i: Array, moved: Rows) -> Any:
        fresh = iter(moved.leaves)
        both = zip(rows.leaves, own, strict=True)
        leaves = tuple(next(fresh) if mine else a for a, mine in both)
        return function(i, moved._replace(leaves=leaves))

    i = jnp.arange(count * block).reshape(count, block)
    return jax.lax.scan(lambda _, slot: (None, one(*slot)), None, (i, moving))[1]


def logits(
    spec: LowBit, given: Operands, s: Array, i: Array, rows: Rows
) -> tuple[Array, Array | None]:
    """Return logits [B, H, rows, M] from products, and what is seen.

    They lack ``shift`` but where a cap makes it count.
    """
    problem = spec.asked
    if rows.base is not None:
        s = s + jnp.repeat(rows.base, TOKENS, axis=2)[:, :, : s.shape[2]]
    if problem.soft_cap is not None and rows.shift is not None:
        s = s + rows.shift[..., None]
    j = jnp.arange(s.shape[3])[None]
    slope = None if given.slopes is None else given.slopes[:, :, None, None]
    places = i[None, None, :, None], j[None, None]
    s = score(problem, s * problem.scale, rows.bias, slope, *places).astype(jnp.float32)
    if problem.mask is None:
        return s, None
    if rows.leaves:
        return s, jax.vmap(partial(_seen, problem, i, j))(rows.leaves)[:, None]
    return s, _seen(problem, i, j, ())[None, None]


def lost(spec: LowBit, shift: Array | None) -> Array | float:
    """Return what logits lack after :func:`logits`."""
    if shift is None or spec.asked.soft_cap is not None:
        return 0.0
    return shift * spec.asked.scale


def _rows(
    spec: LowBit, given: Operands, k: Array, v: Array, i: Array, rows: Rows
) -> tuple[Array, Array]:
    """Attend from the rows numbered i to all columns."""
    s, seen = logits(spec, given, products(rows.q, k), i, rows)
    s = s * LOG2E
    s = s if seen is None else jnp.where(seen, s, -jnp.inf)
    missing = lost(spec, rows.shift)
    sink = None
    if given.sinks is not None:
        sink = (given.sinks.astype(jnp.float32)[:, :, None] - missing) * LOG2E
    top = highest(spec.precision, s, sink)
    p, total = softmax(spec.precision, s, top, sink)
    groups, heads = v.shape[1], p.shape[1]
    grouped = p.reshape(p.shape[0], groups, heads // groups, *p.shape[2:])
    out = jnp.einsum("bgrnm,bgme->bgrne", grouped, v, precision=jax.lax.Precision.HIGHEST)
    out = out.reshape(out.shape[0], heads, *out.shape[3:])
    there = total > 0
    safe = jnp.where(there, total, 1)
    out = jnp.where(there[..., None], out / safe[..., None], 0).astype(given.v.dtype)
    lse = (top + jnp.log2(safe / spec.precision.peak)) / LOG2E + missing
    return out, jnp.where(there, lse, -jnp.inf)


def highest(precision: Precision, s: Array, sink: Array | None) -> Array:
    """Return what weights are relative to, in units of log 2."""
    top = jnp.max(s, axis=-1)
    top = top if sink is None else jnp.maximum(top, sink)
    top = jnp.where(jnp.isfinite(top), top, 0)
    return jax.lax.stop_gradient(jnp.ceil(top) if precision.exponents else top)


def softmax(precision: Precision, s: Array, top: Array, sink: Array | None) -> tuple[Array, Array]:
    """Return rounded weights [B, H, N, M], times their peak, and their sums."""
    top = top - precision.log2_peak
    p = jnp.exp2(s - top[..., None])
    form = precision.pv
    fixed = filled(p, 3, form.block) if form is not None and form.block is not None else p
    fixed = rounded(jax.lax.stop_gradient(fixed), form, block_top)[..., : p.shape[-1]]
    p = through(p, fixed)
    total = jnp.sum(p, axis=-1)
    return p, total if sink is None else total + jnp.exp2(sink - top)
