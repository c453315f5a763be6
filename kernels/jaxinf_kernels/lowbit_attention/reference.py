"""Low-bit attention as it is written down, block of keys by block of keys."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf_kernels.attention.masks import Mask
from jaxinf_kernels.formats import E4M3, Format
from jaxinf_kernels.lowbit_attention.precision import TOKENS, Precision
from jaxinf_kernels.lowbit_attention.prepare import numbers, prepare


def reference(
    q: Float[Array, "n heads d"],
    k: Float[Array, "m groups d"],
    v: Float[Array, "m groups e"],
    *,
    precision: Precision,
    mask: Mask | Bool[Array, "*heads n m"] | None = None,
    bias: Float[Array, "*heads n m"] | None = None,
    alibi: Float[Array, " heads"] | None = None,
    sinks: Float[Array, " heads"] | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    block: int | None = None,
) -> tuple[Float[Array, "n heads e"], Float[Array, "n heads"]]:
    r"""Attention with operands and weights of few bits, in the widest precision there is.

    .. math:: o_i = \frac{\sum_j \hat p_{ij} \hat v_j}{\sum_j \hat p_{ij}}, \qquad
              p_{ij} = e^{a_{ij} - t_i}, \qquad
              a_{ij} = s\, \hat q_i \cdot \hat k_j + s\, \bar q_i \cdot k'_j + \dots

    with :math:`\hat k` the rounded :math:`k' = k - \bar k`, :math:`\hat q` the rounded
    :math:`q - \bar q`, and :math:`t_i` the largest logit of blocks up to the present one; numbers
    of blocks before are multiplied by :math:`e^{t - t'}` when it grows. Arguments as in
    :func:`lowbit_attention`.

    Args:
      q: queries.
      k: keys.
      v: values.
      precision: formats.
      mask: what is seen.
      bias: added to logits.
      alibi: slopes.
      sinks: logits without values.
      soft_cap: bound of logits.
      scale: of products.
      block: keys in a block; all by default.

    Returns:
      One output for each query, and the logarithms of the denominators.
    """
    (n, heads, d), (m, groups, _) = q.shape, k.shape
    wide = jnp.zeros(()).dtype
    # compiled as a kernel's are: a scale's last bit decides about numbers at a tie
    ready = jax.jit(partial(prepare, precision))(*(jnp.moveaxis(a, 1, 0)[None] for a in (q, k, v)))
    keys, values = numbers(ready.k), numbers(ready.v, values=True)
    q_, k_, v_ = (a[0].astype(wide) for a in (numbers(ready.q), keys, values))
    k_, v_ = (jnp.repeat(a, heads // groups, axis=0) for a in (k_, v_))
    logits = jnp.einsum("hnd,hmd->hnm", q_, k_)
    if ready.base is not None:
        logits += jnp.repeat(ready.base[0], TOKENS, axis=1)[:, :n].astype(wide)
    scale = d**-0.5 if scale is None else scale
    took = jnp.zeros((heads, n))
    if ready.shift is not None and soft_cap is None:  # cancels, but for sinks and denominators
        took = ready.shift[0].astype(wide) * scale
    elif ready.shift is not None:
        logits += ready.shift[0][..., None].astype(wide)
    logits *= scale
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    if bias is not None:
        logits = logits + (bias if bias.ndim == 3 else bias[None])
    if alibi is not None:
        distance = jnp.abs(jnp.arange(n)[:, None] - jnp.arange(m)[None])
        logits -= alibi[:, None, None] * distance[None]
    seen = mask.dense(n, m) if isinstance(mask, Mask) else jnp.ones(()) if mask is None else mask
    logits = jnp.where(jnp.broadcast_to(seen, logits.shape) != 0, logits, -jnp.inf)
    sink = None if sinks is None else sinks.astype(wide)[:, None] - took
    out, lse = _blockwise(precision, logits, v_, sink, block or m)
    return jnp.moveaxis(out, 0, 1), (lse + took).T


def _blockwise(
    precision: Precision, logits: Array, v: Array, sink: Any, block: int
) -> tuple[Array, Array]:
    """Go over blocks of keys."""
    logits = logits / jnp.log(2.0)
    top = jnp.full(logits.shape[:2], -jnp.inf)
    total, mean = jnp.zeros(logits.shape[:2]), jnp.zeros((*logits.shape[:2], v.shape[2]))
    if sink is not None:
        sink = jnp.broadcast_to(sink / jnp.log(2.0), top.shape)
        top = _start(precision, sink)
        total = precision.peak * jnp.exp2(sink - top)
    for begin in range(0, logits.shape[2], block):
        s = logits[:, :, begin : begin + block]
        higher = jnp.maximum(top, _start(precision, jnp.max(s, axis=2)))
        safe = jnp.where(jnp.isfinite(higher), higher, 0)
        p = weights(precision.peak * jnp.exp2(s - safe[..., None]), precision.pv)
        fall = jnp.exp2(jnp.where(jnp.isfinite(top), top - safe, -jnp.inf))
        total = total * fall + jnp.sum(p, axis=2)
        mean = mean * fall[..., None] + jnp.einsum("hnm,hme->hne", p, v[:, begin : begin + block])
        top = higher
    there = total > 0
    safe = jnp.where(there, total, 1)
    lse = (top + jnp.log2(safe / precision.peak)) * jnp.log(2.0)
    out = jnp.where(there[..., None], mean / safe[..., None], 0)
    return out, jnp.where(there, lse, -jnp.inf)


def _start(precision: Precision, top: Array) -> Array:
    """Return what weights are relative to: a power of two where the format has powers of two."""
    return jnp.ceil(top) if precision.exponents else top


def weights(p: Array, form: Format | None) -> Array:
    """Return weights rounded to a format."""
    if form is None:
        return p.astype(jnp.bfloat16).astype(p.dtype)
    if form.whole:
        return jnp.round(p)
    if form.block is None:
        return on_grid(p, form)
    pad = jnp.pad(p, ((0, 0), (0, 0), (0, -p.shape[2] % form.block)))
    split = pad.reshape(*p.shape[:2], -1, form.block)
    top = jnp.max(split, axis=3, keepdims=True)
    if form.scale == jnp.float8_e4m3fn:
        scale = on_grid(top / form.largest, E4M3)
    else:
        exponents = jnp.frexp(top)[1] - jnp.frexp(jnp.asarray(form.largest, p.dtype))[1]
        scale = jnp.where(top > 0, jnp.ldexp(jnp.ones_like(top), exponents), 0)
    held = jnp.where(scale > 0, on_grid(split / jnp.where(scale > 0, scale, 1), form) * scale, 0)
    return held.reshape(pad.shape)[:, :, : p.shape[2]]


def on_grid(x: Array, form: Format) -> Array:
    """Return the nearest number of a floating format, ties to even."""
    exponent = jnp.maximum(jnp.frexp(x)[1] - 1, form.least)
    step = jnp.ldexp(jnp.ones_like(x), exponent - form.mantissa)
    return jnp.clip(jnp.round(x / step) * step, -form.largest, form.largest)
