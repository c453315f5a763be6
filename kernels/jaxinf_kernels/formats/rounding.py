"""Casting to few bits: to the nearest, or up and down at random so that the mean is kept."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf_kernels.formats.format import Format


def cast(x: Float[Array, "..."], form: Format) -> Array:
    """Return the nearest element, ties to even; what is larger than the largest becomes it.

    Args:
      x: in units of the scale.
      form: whose elements.

    Returns:
      x's shape, the elements' dtype. Of a NaN: NaN in formats that have one, else 0.
    """
    clipped = jnp.clip(x, -form.largest, form.largest)
    if form.whole:
        return jnp.where(jnp.isnan(x), 0, jnp.round(clipped)).astype(form.dtype)
    return clipped.astype(form.dtype)


def stochastic(key: Array, x: Float[Array, "..."], form: Format) -> Array:
    r"""Return one of the two elements next to x, so that its expectation is x.

    .. math:: P(\text{up}) = (x - \text{below}) / (\text{above} - \text{below})

    Args:
      key: a typed key.
      x: in units of the scale, within the largest: beyond it expectations are not kept.
      form: whose elements.

    Returns:
      x's shape, the elements' dtype.
    """
    x = jnp.clip(x, -form.largest, form.largest).astype(jnp.float32)
    if form.whole:
        step = jnp.ones_like(x)
    else:
        _, exponent = jnp.frexp(x)  # |x| in [2^(e-1), 2^e)
        step = jnp.ldexp(jnp.ones_like(x), jnp.maximum(exponent - 1, form.least) - form.mantissa)
    chance = jax.random.uniform(key, x.shape)
    rounded = jnp.floor(x / step + chance) * step
    return cast(rounded, form)
