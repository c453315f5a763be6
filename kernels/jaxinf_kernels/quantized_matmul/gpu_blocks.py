"""Sizes of blocks on GPUs."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxinf_kernels.chips import Chip

ELEMENTS, SUMMED, WIDENED, TURNED, FINE = "elements", "summed", "widened", "turned", "fine"
"""Kinds of products: of elements as they are, of those whose sums are scaled block by block, of
elements that are widened first, of cotangents with a transpose of such, and of elements with scales
of small blocks that tensor cores multiply."""
SHARED = 232448 - 2048
"""Bytes of shared memory for blocks: barriers have the rest."""


class Blocks(NamedTuple):
    """How much a tile of the result, and a step along what is summed over, have."""

    rows: int = 128
    """Of x: 64, or a multiple of it."""
    columns: int = 128
    """Of the result, for each of two warpgroups; a multiple of 64."""
    stages: int = 6
    """Steps under way at most; as many as shared memory holds."""


TABLE = {
    ELEMENTS: Blocks(),
    SUMMED: Blocks(columns=64),
    WIDENED: Blocks(),
    TURNED: Blocks(),
    FINE: Blocks(columns=64),
}
"""By kind: sums of 128 registers for each thread at most, of which two sets in ``summed``."""


def blocks_for(kind: str, n: int, chip: Chip) -> Blocks:
    """Return the sizes that suit a kind of product with so many rows; Blackwell's have 128."""
    found = TABLE[kind]
    few = n <= 64 and not chip.blackwell
    return found._replace(rows=64, columns=64) if few else found


def stages_for(blocks: Blocks, stage: int, fixed: int) -> int:
    """Return how many steps of so many bytes fit beside a number of bytes."""
    return max(2, min(blocks.stages, (SHARED - fixed) // stage))


def splits_for(tiles: int, steps: int, count: int) -> int:
    """Return over how many blocks of threads sums of one tile are spread.

    More than one where there are fewer tiles than half of the cores, each with four steps at least.
    """
    return max(1, min(count // max(tiles, 1), steps // 4)) if 2 * tiles <= count else 1


def bits(dtype: Any) -> int:
    """Return the bits of an element."""
    return 4 if dtype in (jnp.int4, jnp.float4_e2m1fn) else jnp.dtype(dtype).itemsize * 8
