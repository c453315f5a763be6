"""Sizes of blocks, by chip."""

from typing import NamedTuple

from jaxinf_kernels.chips import Chip

LANES = 128


class Blocks(NamedTuple):
    """How much of each axis a grid step takes."""

    rows: int = 512
    """Of x."""
    columns: int = 512
    """Of w."""
    depth: int = 512
    """Of what is summed over."""


TABLE: dict[tuple[str, str], Blocks] = {}
"""By chip and kind of product: ``elements`` multiplied as they are, or ``widened`` first."""


def blocks_for(chip: Chip | None, widened: bool) -> Blocks:
    """Return the sizes that suit a chip."""
    kind = "widened" if widened else "elements"
    small = chip is not None and chip.memory < 2**25
    default = Blocks(256, 512, 512) if small else Blocks()
    return TABLE.get((chip.name if chip else "", kind), default)


def depth_of(k: int, limit: int, multiple: int) -> tuple[int, int]:
    """Return the depth of a block, and what k is filled up to.

    Args:
      k: what is summed over.
      limit: up to which a block may be deep.
      multiple: of which it is one.
    """
    full = up(k, multiple)
    limit = max(multiple, limit)
    depths = [d for d in range(multiple, min(limit, full) + 1, multiple) if full % d == 0]
    # where no depth of some size divides k, one that does not is better than many small steps
    best = depths[-1]
    if best * 4 < min(limit, full):
        best = limit // multiple * multiple
        full = up(k, best)
    return best, full


def up(size: int, multiple: int) -> int:
    """Return the multiple that a size fits in."""
    return -(-size // multiple) * multiple
