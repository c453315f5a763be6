"""Attention in JAX's own operations: whole where it is small, block of rows by block elsewhere.

Every block of rows sees all keys at once, so the softmax is the plain one; under differentiation a
block is computed anew, so that memory does not grow with the product of the lengths.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.attention.masks import CELL, ROW
from jaxinf_kernels.attention.problem import Operands, Problem, score
from jaxinf_kernels.tiles import precise

WHOLE = 2**21
"""Logits of one example up to which all rows are one block."""
BLOCK = 2**20
"""Logits in a block of rows."""


def attend(*arrays: Array, spec: Problem) -> tuple[Array, Array]:
    """Return outputs [B, H, N, E] and the logarithms of the softmax's sums [B, H, N]."""
    given = spec.operands(arrays)
    (batch, heads, n, _), m = given.q.shape, given.k.shape[2]
    if n == 0 or m == 0:
        batch = max(a.shape[0] for a in given[:3])
        exact = jnp.promote_types(given.q.dtype, jnp.float32)
        empty = jnp.full((batch, heads, n), -jnp.inf, exact)
        return jnp.zeros((batch, heads, n, given.v.shape[3]), given.v.dtype), empty
    if batch * heads * n * m <= WHOLE:
        return _rows(spec, given, jnp.arange(n))
    block = max(8, min(n, BLOCK // (batch * heads * m) // 8 * 8))
    return _by_blocks(spec, given, block)


def _by_blocks(spec: Problem, given: Operands, block: int) -> tuple[Array, Array]:
    """Go over blocks of rows."""
    n = given.q.shape[2]
    count = -(-n // block)

    def cut(a: Array, axis: int) -> Array:
        """Blocks of rows in front; the last is filled up."""
        pad = [(0, 0)] * a.ndim
        pad[axis] = (0, count * block - n)
        a = jnp.pad(a, pad)
        return jnp.moveaxis(a.reshape(*a.shape[:axis], count, block, *a.shape[axis + 1 :]), axis, 0)

    rows = {ROW, CELL}
    moving = (
        cut(given.q, 2),
        None if given.bias is None else cut(given.bias, 2),
        [cut(a, 1) for a, kind in zip(given.leaves, spec.kinds, strict=True) if kind in rows],
    )

    @partial(jax.checkpoint, prevent_cse=False)
    def one(i: Array, moved: Any) -> tuple[Array, Array]:
        q, bias, leaves = moved
        fresh = iter(leaves)
        every = zip(given.leaves, spec.kinds, strict=True)
        leaves = tuple(next(fresh) if kind in rows else a for a, kind in every)
        return _rows(spec, given._replace(q=q, bias=bias, leaves=leaves), i)

    i = jnp.arange(count * block).reshape(count, block)
    _, (out, lse) = jax.lax.scan(lambda _, slot: (None, one(*slot)), None, (i, moving))
    out, lse = (jnp.moveaxis(a, 0, 2) for a in (out, lse))
    out = out.reshape(*out.shape[:2], count * block, -1)[:, :, :n]
    return out, lse.reshape(*lse.shape[:2], -1)[:, :, :n]


def _rows(spec: Problem, given: Operands, i: Array) -> tuple[Array, Array]:
    """Attend from the rows numbered i to all columns."""
    q, k, v = given[:3]
    heads, groups = q.shape[1], k.shape[1]
    exact = jnp.promote_types(q.dtype, jnp.float32)
    product = partial(jnp.einsum, precision=precise(q.dtype), preferred_element_type=exact)
    grouped = q.reshape(q.shape[0], groups, heads // groups, *q.shape[2:])
    s = product("bgrnd,bgmd->bgrnm", grouped, k) * spec.scale
    s = s.reshape(s.shape[0], heads, *s.shape[3:])
    j = jnp.arange(k.shape[2])[None]
    slope = None if given.slopes is None else given.slopes[:, :, None, None]
    s = score(spec, s, given.bias, slope, i[None, None, :, None], j[None, None]).astype(exact)
    if spec.mask is not None:
        seen = jax.vmap(partial(_seen, spec, i, j))(given.leaves) if given.leaves else None
        seen = _seen(spec, i, j, ())[None] if seen is None else seen
        s = jnp.where(seen[:, None], s, -jnp.inf)
    top = jnp.max(s, axis=-1)
    sink = None if given.sinks is None else given.sinks.astype(exact)[:, :, None]
    top = top if sink is None else jnp.maximum(top, sink)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    p = jnp.exp(s - top[..., None]).astype(v.dtype)
    total = jnp.sum(p, axis=-1, dtype=exact)
    total = total if sink is None else total + jnp.exp(sink - top)
    there = total > 0
    safe = jnp.where(there, total, 1)
    share = jnp.where(there, 1 / safe, 0)[..., None]
    narrow = p.dtype == exact and p.shape[3] <= v.shape[3]  # what is smaller is divided
    weights = (p * share if narrow else p).reshape(p.shape[0], groups, -1, *p.shape[2:])
    out = product("bgrnm,bgme->bgrne", weights, v).reshape(*s.shape[:3], v.shape[3])
    out = (out if narrow else out * share).astype(v.dtype)
    return out, jnp.where(there, top + jnp.log(safe), -jnp.inf)


def _seen(spec: Problem, i: Array, j: Array, leaves: tuple[Array, ...]) -> Array:
    """Return the mask of rows i for one example."""
    shapes = {ROW: lambda a: a[:, None], "column": lambda a: a[None]}
    shown = [shapes.get(kind, lambda a: a)(a) for a, kind in zip(leaves, spec.kinds, strict=True)]
    mask = spec.shown(shown)
    assert mask is not None
    return jnp.broadcast_to(mask.sees(i[:, None], j), (i.shape[0], j.shape[1]))
