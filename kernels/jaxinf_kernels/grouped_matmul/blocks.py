"""Sizes of blocks by chip."""

from typing import NamedTuple

from jaxinf_kernels.chips import Chip, MiB
from jaxinf_kernels.tiles import LANES, up


class Blocks(NamedTuple):
    """How a kernel goes about; but rows they are those of two-byte numbers."""

    rows: int = 512
    """Rows of x in a visit."""
    depth: int = 2048
    """Summands in a block of memory."""
    columns: int = 512
    """Columns of the result in a block of memory."""
    inner: int = 512
    """Columns of the result in a product."""
    side: int = 512
    """Rows and columns in a block of the weights' cotangents, and columns of that of x's."""
    memory: int = 14 * MiB
    """Bytes of the core's memory that the kernel may have."""


TABLE = {
    "v4": Blocks(),
    "v5e": Blocks(depth=4096, side=1024, memory=96 * MiB),
    "v5p": Blocks(depth=4096, side=1024, memory=56 * MiB),
    "v6e": Blocks(depth=4096, columns=1024, side=1024, memory=96 * MiB),
    "tpu7x": Blocks(depth=4096, columns=1024, side=1024, memory=56 * MiB),
}
"""By the chip's name; what fits the smallest memory where no chip is named."""


def blocks_for(chip: Chip | None) -> Blocks:
    """Return a chip's block sizes."""
    return TABLE.get(chip.name, Blocks()) if chip else Blocks()


def rows_for(blocks: Blocks, n: int, groups: int) -> int:
    """Return the rows in a visit: at most about those of a group, of which a visit sees one."""
    mean = max(LANES, 1 << (max(n, 1) // groups).bit_length())
    return min(blocks.rows, mean, up(n, 32))


def cut(size: int, limit: int) -> int:
    """Return the size of blocks along an axis: all of it, or about equal multiples of 128."""
    if size <= limit:
        return size
    return up(-(-size // -(-size // limit)), LANES)
