"""Sizes of blocks on GPUs."""

from typing import Any, NamedTuple

import jax.numpy as jnp

COMPUTING = 2
"""Warpgroups that multiply; one more fetches."""
SHARED = 232448 - 2048
"""Bytes of shared memory for blocks: barriers have the rest."""


class Blocks(NamedTuple):
    """How much a tile of a result has."""

    rows: int = 128
    """Of x, or of a group's matrix: 64, or a multiple of it."""
    columns: int = 128
    """Of the result, for each of two warpgroups; a multiple of 64."""
    stages: int = 6
    """Steps under way at most; as many as shared memory holds."""


def blocks_for(n: int, groups: int) -> Blocks:
    """Return the sizes that suit so many rows: where groups have few, a visit has few."""
    return Blocks() if n > 64 * groups else Blocks(rows=64)


def stages_for(blocks: Blocks, depth: int, dtype: Any) -> int:
    """Return how many steps fit."""
    stage = (blocks.rows + COMPUTING * blocks.columns) * depth * jnp.dtype(dtype).itemsize
    fixed = COMPUTING * blocks.rows * 128
    return max(2, min(blocks.stages, (SHARED - fixed) // stage))
