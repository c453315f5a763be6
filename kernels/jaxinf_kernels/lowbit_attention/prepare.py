"""What comes before the products: smoothing, and few bits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf_kernels.formats import Format, Quantised, quantise
from jaxinf_kernels.lowbit_attention.precision import TOKENS, Precision


class Smooth(NamedTuple):
    """Queries and keys in float32 without their means."""

    q: Array
    """[B, H, N, D]"""
    k: Array
    """[B, G, M, D]"""
    q_mean: Array | None
    """[B, H, N / 128, D], of each 128 queries."""
    k_mean: Array | None
    """[B, G, 1, D]"""


class Held(NamedTuple):
    """Numbers as elements times scales, by which products are multiplied afterwards."""

    elements: Array
    """[..., tokens, features]; of formats with blocks they are widened to bfloat16, exactly."""
    scale: Array
    """[..., tokens], or [..., features] for values."""


class Prepared(NamedTuple):
    """The operands of the products."""

    q: Held
    k: Held
    v: Held
    shift: Array | None
    """[B, H, N], what smoothing keys took from a query's products."""
    base: Array | None
    """[B, H, N / 128, M], what smoothing queries took."""


def prepare(precision: Precision, q: Array, k: Array, v: Array) -> Prepared:
    """Smooth and quantise; arrays as in :class:`Operands`."""
    smooth = smoothed(precision, q, k)
    return Prepared(
        held(smooth.q, precision.qk, 1),
        held(smooth.k, precision.qk, precision.tokens),
        held_values(v, precision.pv),
        *added(smooth, q),
    )


def smoothed(precision: Precision, q: Array, k: Array) -> Smooth:
    """Subtract means."""
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    q_mean = k_mean = None
    if precision.smooth_k:
        k_mean = jnp.mean(k, axis=2, keepdims=True)
        k = k - k_mean
    if precision.smooth_q:
        n = q.shape[2]
        tiles = by_tiles(q, 2)
        there = by_tiles(jnp.ones((1, 1, n, 1)), 2)
        q_mean = jnp.sum(tiles, axis=3) / jnp.sum(there, axis=3)
        q = q - jnp.repeat(q_mean, TOKENS, axis=2)[:, :, :n]
    return Smooth(q, k, q_mean, k_mean)


def added(smooth: Smooth, q: Array) -> tuple[Array | None, Array | None]:
    """Return ``shift`` and ``base`` of :class:`Prepared`, without the products' scale."""
    shift = base = None
    if smooth.k_mean is not None:
        shift = products(q.astype(jnp.float32), smooth.k_mean)[..., 0]
    if smooth.q_mean is not None:
        base = products(smooth.q_mean, smooth.k)
    return shift, base


def products(q: Array, k: Array) -> Array:
    """Return all queries' products with all keys, in float32: [B, H, N, M]."""
    groups, heads = k.shape[1], q.shape[1]
    q = q.reshape(q.shape[0], groups, heads // groups, *q.shape[2:])
    exact: Any = (
        dict(preferred_element_type=jnp.int32)
        if jnp.issubdtype(q.dtype, jnp.integer)
        else dict(precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    )
    s = jnp.einsum("bgrnd,bgmd->bgrnm", q, k, **exact).astype(jnp.float32)
    return s.reshape(s.shape[0], heads, *s.shape[3:])


def by_tiles(a: Array, axis: int) -> Array:
    """Cut an axis into tiles of 128, filled up with zeros: two axes in its place."""
    a = filled(a, axis, TOKENS)
    return a.reshape(*a.shape[:axis], -1, TOKENS, *a.shape[axis + 1 :])


def filled(a: Array, axis: int, multiple: int) -> Array:
    """Fill an axis up with zeros."""
    pad = [(0, 0)] * a.ndim
    pad[axis] = (0, -a.shape[axis] % multiple)
    return jnp.pad(a, pad)


def held(x: Float[Array, "b h n d"], form: Format, tokens: int) -> Held:
    """Hold queries or keys, with one scale for so many tokens, or the format's blocks."""
    n, d = x.shape[2:]
    if form.block is not None:
        return _widened(filled(x, 3, form.block), form, -1, (n, d))
    x = filled(x, 2, tokens)
    whole = quantise(x.reshape(*x.shape[:2], -1, tokens * d), form)
    scale = jnp.repeat(whole.scales[..., 0], tokens, axis=2)[:, :, :n]
    return Held(whole.elements.reshape(x.shape)[:, :, :n], scale)


def held_values(v: Float[Array, "b h m e"], form: Format | None) -> Held:
    """Hold values, with one scale for a feature, or the format's blocks of tokens."""
    m, e = v.shape[2:]
    if form is None:
        ones = jnp.ones((*v.shape[:2], e), jnp.float32)
        return Held(v.astype(jnp.bfloat16), ones)
    if form.block is not None:
        found = _widened(filled(v, 2, form.block), form, -2, (m, e))
        scale = jnp.broadcast_to(found.scale[..., :1], (*v.shape[:2], e))
        return Held(found.elements, scale)
    whole = quantise(v, form, axis=-2)
    return Held(whole.elements, whole.scales[:, :, 0])


def _widened(x: Array, form: Format, axis: int, size: tuple[int, int]) -> Held:
    """Elements times their blocks' scales, of which bfloat16 has all bits; the outer scale stays.

    The outer scale is one for each head, and given for each token.
    """
    whole = in_blocks(x, form, axis)
    scales = jnp.repeat(whole.scales.astype(jnp.float32), whole.block, axis=axis)
    elements = (whole.elements.astype(jnp.float32) * scales).astype(jnp.bfloat16)
    outer = jnp.ones(x.shape[:2]) if whole.outer is None else whole.outer
    scale = jnp.broadcast_to(outer[:, :, None], (*x.shape[:2], size[0]))
    return Held(elements[:, :, : size[0], : size[1]], scale.astype(jnp.float32))


def in_blocks(x: Array, form: Format, axis: int) -> Quantised:
    """Hold each head of [B, H, tokens, features] in a format's blocks, which divide the axis."""
    return jax.vmap(jax.vmap(lambda a: quantise(a, form, axis=axis)))(x)


def numbers(x: Held, values: bool = False) -> Array:
    """Return what is held, in float32."""
    scale = x.scale[:, :, None] if values else x.scale[..., None]
    return x.elements.astype(jnp.float32) * scale
