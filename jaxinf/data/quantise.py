"""Whole-numbered levels to real numbers in [-1, 1] and back."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from jaxinf.core import Key


def dequantise(key: Key, x: Integer[Array | np.ndarray, "..."], levels: int) -> Float[Array, "..."]:
    r"""Spread each level evenly over its own interval of [-1, 1].

    .. math:: y = 2 (x + u) / L - 1, \qquad u \sim \mathcal U[0, 1)

    so that a density of ``y`` bounds the probability of ``x`` from below. The draw keeps a few
    roundings' distance (``4 L`` machine epsilons) from both edges of its interval, so that
    :func:`quantise` gives ``x`` back exactly.

    Args:
      key: for ``u``.
      x: levels in ``[0, levels)``.
      levels: how many levels there are.

    Returns:
      Numbers in [-1, 1] of the default floating-point type.

    Reference:
      L. Theis, A. van den Oord, M. Bethge, "A note on the evaluation of generative models",
      ICLR 2016, section 3.1.
    """
    return _place(x, jax.random.uniform(key, jnp.shape(x)), levels)


def _place(x: Array | np.ndarray, u: Array, levels: int) -> Array:
    """The point at the fraction ``u`` of each level's interval, kept off the interval's edges."""
    margin = 4 * levels * jnp.finfo(u.dtype).eps
    return (jnp.asarray(x) + margin + (1 - 2 * margin) * u) / levels * 2 - 1


def midpoints(x: Integer[Array | np.ndarray, "..."], levels: int) -> Float[Array, "..."]:
    r"""Return the middles of levels' intervals in [-1, 1], :math:`(2 x + 1) / L - 1`.

    Args:
      x: levels in ``[0, levels)``.
      levels: how many levels there are.

    Returns:
      Numbers in (-1, 1) of the default floating-point type.
    """
    return (2 * jnp.asarray(x, jnp.result_type(float)) + 1) / levels - 1


def quantise(y: Float[Array, "..."], levels: int) -> Integer[Array, "..."]:
    """Return the level whose interval holds ``y``, the inverse of :func:`dequantise`.

    Args:
      y: any real numbers; those outside [-1, 1] go to the nearest level.
      levels: how many levels there are.

    Returns:
      Levels in ``[0, levels)`` as int32.
    """
    return jnp.clip(jnp.floor((y + 1) / 2 * levels), 0, levels - 1).astype(jnp.int32)
