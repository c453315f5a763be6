"""What kernels for Blackwell have in common: how arrays lie in registers, and scales of blocks."""

import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

ROWS = 128
"""Lanes of tensor memory: rows of a tile, or of a warpgroup."""
LINE = 16
"""Bytes of scales of 32 rows by 4 that lie together, in lines of so many."""

MATRIX = plgpu.Layout.TCGEN05
"""How sums, and what is computed of them, lie in registers."""
DOWN = MATRIX.reduce(1)
"""A number for each row of a matrix."""
ACROSS = MATRIX.reduce(0)
"""A number for each column of a matrix."""


def scales_ready(a: Array, size: int, depth: int) -> Array:
    """Return scales of rows [B, N, blocks] as tensor cores read them, [B, N / 128, steps, 32, 16].

    Args:
      a: scales.
      size: numbers that share one.
      depth: of a step, of which the scales are filled up to a multiple.
    """
    step = depth // size
    pad = [(0, 0), (0, -a.shape[1] % ROWS), (0, -a.shape[2] % step)]
    a = jnp.pad(a, pad, constant_values=1)
    batch, n, blocks = a.shape
    split = a.reshape(batch, n // ROWS, 4, 32, blocks // 4, 4)
    return jnp.transpose(split, (0, 1, 4, 3, 2, 5)).reshape(batch, n // ROWS, blocks // 4, 32, LINE)
