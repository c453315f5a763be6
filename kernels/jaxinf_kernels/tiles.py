"""Sizes that fit blocks, and how blocks are multiplied."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

LANES = 128
"""Numbers in a row of a TPU's vector registers."""


def up(size: int, multiple: int) -> int:
    """Return the least multiple that holds a size."""
    return -(-size // multiple) * multiple


def filled_up(a: Array, axes: dict[int, int], value: float = 0) -> Array:
    """Fill axes up to whole blocks, of which the sizes are given."""
    pad = [(0, -a.shape[x] % axes[x] if x in axes else 0) for x in range(a.ndim)]
    return jnp.pad(a, pad, constant_values=value) if any(p for _, p in pad) else a


def precise(dtype: Any) -> jax.lax.Precision:
    """Products of float32 are in float32 on every platform."""
    wide = dtype in (jnp.float32, jnp.float64)
    return jax.lax.Precision.HIGHEST if wide else jax.lax.Precision.DEFAULT
