"""Attention to a cache in JAX's own operations, a few blocks of queries at a time."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.decode_attention.cache import Cache, Pages
from jaxinf_kernels.decode_attention.problem import Operands, Problem, score, seen
from jaxinf_kernels.tiles import precise

HELD = 2**25
"""Numbers of the cache that are widened at a time."""


def attend(*arrays: Array, spec: Problem) -> tuple[Array, Array]:
    """Return outputs [B, N, G, R, E] and the logarithms of the softmax's sums [B, N, G, R]."""
    mapped = [a.shape[0] > 1 for a in arrays]

    def one(*arrays: Array) -> tuple[Array, Array]:
        return _example(spec, spec.operands(arrays))

    if not any(mapped):
        out, lse = one(*(a[0] for a in arrays))
        return out[None], lse[None]
    own = [a if m else a[0] for a, m in zip(arrays, mapped, strict=True)]
    return jax.vmap(one, in_axes=tuple(0 if m else None for m in mapped))(*own)


def _example(spec: Problem, given: Operands) -> tuple[Array, Array]:
    """Attend from all blocks of one example."""
    cache = given.cache
    tokens = given.table.shape[1] * cache.page_size
    wide = cache.groups * (cache.keys.width + cache.values.width)
    together = max(1, HELD // max(1, tokens * wide))
    blocks = given.q, given.sequence, given.first, given.end
    return jax.lax.map(lambda a: _block(spec, given, *a), blocks, batch_size=together)


def _block(
    spec: Problem, given: Operands, q: Array, sequence: Array, first: Array, end: Array
) -> tuple[Array, Array]:
    """Attend from one block of queries: q is [G, R, D]."""
    cache: Cache = given.cache
    pages = given.table[sequence]
    keys, values = cache.keys.at(pages), cache.values.at(pages)
    exact = jnp.promote_types(q.dtype, jnp.float32)
    rows, tokens = q.shape[1], len(pages) * cache.page_size
    repeats = rows // spec.queries
    s = _products(q, keys, exact) * spec.scale
    # query by query and head by head
    s = s.reshape(cache.groups, spec.queries, repeats, tokens)
    i, j = first + jnp.arange(spec.queries)[:, None, None], jnp.arange(tokens)[None, None]
    slope, sink = (
        None if a is None else a.astype(exact)[:, None, :, None]
        for a in (given.slopes, given.sinks)
    )
    visible = (seen(spec, i - j) & (i < end))[None]
    s = score(spec, s, slope, (i - j)[None].astype(exact)).astype(exact)
    s = jnp.where(visible, s, -jnp.inf).reshape(cache.groups, rows, tokens)
    top = jnp.max(s, axis=-1, keepdims=True)
    if sink is not None:
        shape = (cache.groups, spec.queries, repeats, 1)
        sink = jnp.broadcast_to(sink, shape).reshape(cache.groups, rows, 1)
        top = jnp.maximum(top, sink)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    p = jnp.exp(s - top)
    inside = (jnp.arange(tokens) < end) & seen(spec, end - 1 - jnp.arange(tokens), spec.queries)
    inside = inside.reshape(len(pages), cache.page_size)
    out, total = _means(p, values, q.dtype, inside)
    total = total if sink is None else total + jnp.exp(sink - top)
    safe = jnp.where(total > 0, total, 1)
    out = jnp.where(total > 0, out / safe, 0).astype(q.dtype)
    return out, jnp.where(total > 0, top + jnp.log(safe), -jnp.inf)[..., 0]


def _products(q: Array, keys: Pages, exact: Any) -> Array:
    """Return products [G, R, tokens] of queries with keys."""
    product = partial(jnp.einsum, precision=precise(q.dtype), preferred_element_type=exact)
    wide = keys.widened(q.dtype)
    if keys.channels is None:
        s = product("grd,ptgd->grpt", q, wide)
    else:
        shape = (len(wide), keys.groups, 1, keys.width)
        scaled = (q[None].astype(exact) * keys.channels.reshape(shape)).astype(q.dtype)
        s = product("pgrd,ptgd->grpt", scaled, wide)
    if keys.scales is not None:
        s = s * jnp.moveaxis(keys.scales, 0, 1)[:, None].astype(exact)
    return s.reshape(*s.shape[:2], -1)


def _means(p: Array, values: Pages, dtype: Any, inside: Array) -> tuple[Array, Array]:
    """Return sums of values [G, R, E] and of weights [G, R, 1].

    Weights are rounded to the queries' dtype with their scales in. Without scales their rounded
    numbers are summed, so that equal values are returned as they are.
    """
    exact = p.dtype
    wide = jnp.where(inside[..., None, None], values.widened(dtype), 0)
    p = p.reshape(*p.shape[:2], *inside.shape)
    if values.scales is None:
        w = p.astype(dtype)
        total = w
    else:
        scales = jnp.where(inside[:, None], values.scales, 0)
        w, total = (p * jnp.moveaxis(scales, 0, 1)[:, None].astype(exact)).astype(dtype), p
    total = jnp.sum(total, axis=(2, 3), dtype=exact)[..., None]
    out = jnp.einsum(
        "grpt,ptge->gre", w, wide, precision=precise(dtype), preferred_element_type=exact
    )
    return out, total
