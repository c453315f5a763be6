"""Softmax weights in few bits, by arithmetic that a kernel can do too."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf_kernels.formats import E4M3, Format


def rounded(
    p: Float[Array, "..."], form: Format | None, block_top: Callable[[Array, int], Array]
) -> Float[Array, "..."]:
    """Round weights, which are not negative, to a format; block scales are multiplied in.

    Args:
      p: weights times the precision's peak, in float32.
      form: of the weights; None for bfloat16.
      block_top: of an array and a size, the largest of each so many along the last axis, given to
        all of these.

    Returns:
      p's shape, in float32. With blocks every number fits bfloat16.
    """
    if form is None:
        return p.astype(jnp.bfloat16).astype(jnp.float32)
    if form.whole:
        return jnp.round(p)
    if form.block is None:
        return nearest(p, form)
    top = block_top(p, form.block)
    if form.scale == jnp.float8_e4m3fn:
        scale = nearest(top / form.largest, E4M3)
    else:
        scale = power(top) / power(jnp.full_like(top, form.largest))
    there = scale > 0
    return jnp.where(there, nearest(p / jnp.where(there, scale, 1), form) * scale, 0)


def nearest(x: Float[Array, "..."], form: Format) -> Float[Array, "..."]:
    """Return the nearest number of a floating format, ties to even, of one that is not negative."""
    step = jnp.maximum(power(x), 2.0**form.least) * 2.0**-form.mantissa
    return jnp.minimum(jnp.round(x / step) * step, form.largest)


def power(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the largest power of two that is not above a positive number; of zero, zero."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jax.lax.bitcast_convert_type(bits & 0x7F800000, jnp.float32)


def block_top(p: Array, block: int) -> Array:
    """Return blocks' largest, given to all of a block."""
    top = jnp.max(p.reshape(*p.shape[:-1], -1, block), axis=-1)
    return jnp.repeat(top, block, axis=-1)
