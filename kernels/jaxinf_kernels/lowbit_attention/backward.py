r"""The gradient of low-bit attention: five products, four of them in few bits.

With the weights P of the forward's own logits, :math:`\psi` rounding tiles of 128 queries by 128
keys, or 128 tokens, to ``Precision.gradients`` with one scale each, and k' and q' the smoothed,

.. math:: \bar V = \psi(P)^T \psi(\bar O), \quad \bar A = P \circ (\bar O V^T - D + \bar L), \quad
          \bar Q = \psi(\bar S) \psi(K') + \bar S 1 \bar k^T, \quad
          \bar K = \psi(\bar S)^T \psi(Q') + \dots

:math:`D = \mathrm{rowsum}(\bar O \circ O)`, :math:`\bar S` the cotangent of the products before
scale, cap, bias and slopes, whose own cotangents are exact. :math:`\bar O V^T` is not rounded.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.attention.masks import CELL, ROW
from jaxinf_kernels.attention.problem import Operands
from jaxinf_kernels.formats import Format, quantise
from jaxinf_kernels.lowbit_attention import xla
from jaxinf_kernels.lowbit_attention.precision import TOKENS
from jaxinf_kernels.lowbit_attention.prepare import (
    Prepared,
    Smooth,
    by_tiles,
    filled,
    prepare,
    products,
    smoothed,
)
from jaxinf_kernels.lowbit_attention.problem import LowBit
from jaxinf_kernels.operation import Arrays, Rule
from jaxinf_kernels.tiles import precise


def pull(*args: Array, spec: Rule) -> Arrays:
    """Return the cotangents of the active operands."""
    operands, (out, lse), (g_out, g_lse) = spec.split(args)
    own: Any = spec.spec
    batch = max(a.shape[0] for a in (*operands, out, g_out))
    spread = [jnp.broadcast_to(a, (batch, *a.shape[1:])) for a in operands]
    given = own.asked.operands(spread)
    if not given.q.shape[2] or not given.k.shape[2]:
        found = [jnp.zeros_like(a) for a in operands]
    else:
        whole = _gradients(own, given, out, lse, g_out.astype(jnp.float32), g_lse)
        found = [_summed(g, a) for g, a in zip(whole, operands, strict=False)]
    return tuple(g for g, active in zip(found, spec.active, strict=False) if active)


def _summed(g: Array, a: Array) -> Array:
    """Return the cotangent of what served all of a batch."""
    g = jnp.sum(g, axis=0, keepdims=True) if a.shape[0] == 1 and g.shape[0] > 1 else g
    return g.astype(a.dtype)


def _gradients(
    spec: LowBit, given: Operands, out: Array, lse: Array, g_out: Array, g_lse: Array
) -> list[Array]:
    """Return the cotangents of q, k, v and what there is of bias, slopes and sinks."""
    n, m = given.q.shape[2], given.k.shape[2]
    ready = prepare(spec.precision, *given[:3])
    smooth = smoothed(spec.precision, given.q, given.k)
    form = spec.precision.gradients
    mean = jnp.sum(g_out * out.astype(jnp.float32), axis=3) - g_lse
    tokens = tuple(_tokens(a, form) for a in (smooth.q, smooth.k, g_out))
    moving = _moving(spec, given, ready, tokens[0], tokens[2], g_out, lse, mean)

    @partial(jax.checkpoint, prevent_cse=False)
    def one(sums: Any, slot: Any) -> Any:
        row = _row(spec, given, ready, tokens[1], slot)
        g_k, g_v, *g_slopes = row["keys"]
        return jax.tree.map(jnp.add, sums, (g_k, g_v, *g_slopes)), row["rows"]

    count, d, e = -(-n // TOKENS), given.q.shape[3], given.v.shape[3]
    wide = (*given.k.shape[:2], -(-m // TOKENS) * TOKENS)
    shapes = [(*wide, d), (*wide, e)]
    shapes += [] if given.slopes is None else [given.slopes.shape]
    nothing = _nothing([*spec.asked.flat(given), g_out, lse, mean])
    start = tuple(jnp.full(shape, nothing) for shape in shapes)
    sums, (g_q, totals, g_bias) = jax.lax.scan(one, start, (jnp.arange(count), moving))
    join = partial(_joined, n=n)
    g_q = _unsmoothed(smooth, join(g_q), join(totals))
    found = [g_q, sums[0][:, :, :m], sums[1][:, :, :m]]
    found += [] if g_bias is None else [join(g_bias)]
    found += list(sums[2:])
    if given.sinks is not None:
        weight = jnp.exp(given.sinks.astype(jnp.float32)[:, :, None] - lse)
        found.append(-jnp.sum(weight * mean, axis=2))
    return found


def _nothing(arrays: list[Array]) -> Array:
    """Return zero, which varies over a mesh's axes as all of the arrays together do."""
    firsts = [jnp.sum(a.reshape(-1)[:1]).astype(jnp.float32) for a in arrays]
    return 0.0 * jnp.isnan(sum(firsts)).astype(jnp.float32)


def _moving(
    spec: LowBit, given: Operands, ready: Prepared, q: Any, g: Any, g_out: Array, lse: Array,
    mean: Array,
) -> dict[str, Any]:  # fmt: skip
    """Return what belongs to rows, with tiles of 128 of them in front."""

    def cut(a: Array, axis: int) -> Array:
        return jnp.moveaxis(by_tiles(a, axis), axis, 0)

    front = partial(jnp.moveaxis, source=2, destination=0)
    leaves = zip(given.leaves, spec.asked.kinds, strict=True)
    base = None if ready.base is None else front(ready.base[:, :, :, None])
    return {
        "elements": cut(ready.q.elements, 2), "scale": cut(ready.q.scale, 2), "base": base,
        "shift": None if ready.shift is None else cut(ready.shift, 2),
        "bias": None if given.bias is None else cut(given.bias, 2),
        "leaves": [cut(a, 1) for a, kind in leaves if kind in (ROW, CELL)],
        "q": jax.tree.map(front, q), "g": jax.tree.map(front, g),
        "mean q": _means(spec, given, front), "g_out": cut(g_out, 2), "mean": cut(mean, 2),
        "lse": cut(lse, 2),
    }  # fmt: skip


def _means(spec: LowBit, given: Operands, front: Any) -> Array | None:
    """Return what was subtracted of queries."""
    found = smoothed(spec.precision, given.q, given.k).q_mean
    return None if found is None else front(found)


def _row(spec: LowBit, given: Operands, ready: Prepared, k: Any, slot: Any) -> dict[str, Any]:
    """Return what a tile of 128 rows gives: to all keys, and of its own."""
    number, at = slot
    form = spec.precision.gradients
    fresh = iter(at["leaves"])
    both = zip(given.leaves, spec.asked.kinds, strict=True)
    leaves = tuple(next(fresh) if kind in (ROW, CELL) else a for a, kind in both)
    i = number * TOKENS + jnp.arange(TOKENS)
    s = _products(at["elements"], ready.k.elements)
    s = s * at["scale"][..., None] * _to_heads(ready.k.scale, s)[:, :, None]

    def scored(s: Array, bias: Any, slopes: Any) -> Array:
        rows = xla.Rows(s, at["shift"], at["base"], bias, leaves)
        return xla.logits(spec, given._replace(slopes=slopes), s, i, rows)[0]

    rows = xla.Rows(s, at["shift"], at["base"], at["bias"], leaves)
    seen = xla.logits(spec, given, s, i, rows)[1]
    a, back = jax.vjp(scored, s, at["bias"], given.slopes)
    there = jnp.isfinite(at["lse"]) & (i < given.q.shape[2])[None, None]
    lse = jnp.where(there, at["lse"] - xla.lost(spec, at["shift"]), 0)
    there = there[..., None] if seen is None else there[..., None] & seen
    p = jnp.where(there, jnp.exp(jnp.where(there, a - lse[..., None], 0)), 0)
    g_p = _plain(at["g_out"], given.v)
    g_s, g_bias, g_slopes = back(p * (g_p - at["mean"][..., None]))
    tiles_s, tiles_p = (_tiles(x, form) for x in (g_s, p))
    g_v = _down(tiles_p, at["g"], given.v.shape[1])
    g_k = _down(tiles_s, at["q"], given.k.shape[1])
    if at["mean q"] is not None:
        whole = jnp.sum(filled(g_s, 3, TOKENS), axis=2)[..., None] * at["mean q"][:, :, None]
        g_k = g_k + _to_groups(whole, given.k.shape[1])
    extras = () if g_slopes is None else (g_slopes.astype(jnp.float32),)
    own = _along(tiles_s, k), jnp.sum(g_s, axis=3), g_bias
    return {"keys": (g_k, g_v, *extras), "rows": own}


def _unsmoothed(smooth: Smooth, g_q: Array, totals: Array) -> Array:
    """Add what the keys' mean gives to queries."""
    if smooth.k_mean is None:
        return g_q
    mean = jnp.repeat(smooth.k_mean, g_q.shape[1] // smooth.k_mean.shape[1], axis=1)
    return g_q + totals[..., None] * mean


def _joined(a: Array, n: int) -> Array:
    """Join tiles of rows [T, B, H, 128, ...]."""
    a = jnp.moveaxis(a, 0, 2)
    return a.reshape(*a.shape[:2], -1, *a.shape[4:])[:, :, :n]


def _tokens(x: Array, form: Format | None) -> tuple[Array, Array]:
    """Round tiles of 128 tokens: elements [B, H, T, 128, D] and scales [B, H, T]."""
    return _rounded(by_tiles(x, 2), form)


def _tiles(x: Array, form: Format | None) -> tuple[Array, Array]:
    """Round tiles of [B, H, 128, M]: elements [B, H, T, 128, 128] and scales [B, H, T]."""
    return _rounded(jnp.moveaxis(by_tiles(x, 3), 3, 2), form)


def _rounded(x: Array, form: Format | None) -> tuple[Array, Array]:
    if form is None:
        return x.astype(jnp.bfloat16), jnp.ones(x.shape[:3])
    whole = quantise(x.reshape(*x.shape[:3], -1), form)
    return whole.elements.reshape(x.shape), whole.scales[..., 0]


def _products(q: Array, k: Array) -> Array:
    """Return products of elements, exact for whole numbers."""
    if jnp.issubdtype(q.dtype, jnp.integer):
        return products(q.astype(jnp.int8), k.astype(jnp.int8))
    return products(q.astype(jnp.bfloat16), k.astype(jnp.bfloat16))


def _exact(a: Array, b: Array, how: str) -> Array:
    """Return a product of elements in float32."""
    if jnp.issubdtype(a.dtype, jnp.integer):
        a, b, wide = a.astype(jnp.int8), b.astype(jnp.int8), jnp.int32
    else:
        a, b, wide = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), jnp.float32
    return jnp.einsum(how, a, b, preferred_element_type=wide).astype(jnp.float32)


def _along(s: tuple[Array, Array], k: tuple[Array, Array]) -> Array:
    """Return [B, H, 128, D], of a row of tiles with the keys' tiles."""
    elements, scale = (_to_heads(a, s[0]) for a in k)
    each = _exact(s[0], elements, "bhtij,bhtjd->bhtid")
    return jnp.sum(each * (s[1] * scale)[..., None, None], axis=2)


def _down(p: tuple[Array, Array], g: tuple[Array, Array], groups: int) -> Array:
    """Return [B, G, M, E], of a row of tiles with the rows' own tile."""
    each = _exact(p[0], g[0], "bhtij,bhie->bhtje")
    each = each * (p[1] * g[1][..., None])[..., None, None]
    return _to_groups(each.reshape(*each.shape[:2], -1, each.shape[4]), groups)


def _plain(g: Array, v: Array) -> Array:
    """Return products that are not rounded to few bits."""
    v = _to_heads(v, g)
    return jnp.einsum(
        "bhie,bhme->bhim", g.astype(v.dtype), v,
        precision=precise(v.dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip


def _to_heads(a: Array, like: Array) -> Array:
    return jnp.repeat(a, like.shape[1] // a.shape[1], axis=1)


def _to_groups(a: Array, groups: int) -> Array:
    """Sum over the heads that share keys."""
    return jnp.sum(a.reshape(a.shape[0], groups, -1, *a.shape[2:]), axis=2)
