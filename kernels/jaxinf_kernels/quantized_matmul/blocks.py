"""Sizes of blocks, by chip."""

from typing import NamedTuple

from jaxinf_kernels.chips import Chip
from jaxinf_kernels.tiles import up


class Blocks(NamedTuple):
    """How much of each axis a grid step takes."""

    rows: int = 512
    """Of x."""
    columns: int = 512
    """Of w."""
    depth: int = 512
    """Of what is summed over."""


ELEMENTS, SUMMED, WIDENED, SPREAD, SINGLE, BACK = (
    "elements", "summed", "widened", "spread", "single", "back",
)  # fmt: skip
"""Kinds of products: of elements as they are, of those in blocks that are scaled one by one, of
elements that are widened first, of those where x has scales of blocks to spread, of float32, and
of cotangents with a transpose."""

TABLE: dict[tuple[str, str], Blocks] = {
    ("", ELEMENTS): Blocks(1024, 256, 4096),
    ("", SUMMED): Blocks(256, 512, 1024),
    ("", WIDENED): Blocks(1024, 256, 4096),
    ("", SPREAD): Blocks(512, 1024, 2048),
    ("", SINGLE): Blocks(512, 256, 2048),
    ("", BACK): Blocks(512, 512, 1024),
    ("v5p", ELEMENTS): Blocks(2048, 256, 4096),
    ("v6e", ELEMENTS): Blocks(1024, 512, 4096),
    ("v4", ELEMENTS): Blocks(512, 256, 1024),
    ("v4", SUMMED): Blocks(256, 256, 1024),
    ("v4", WIDENED): Blocks(512, 256, 1024),
    ("v4", SPREAD): Blocks(256, 512, 1024),
    ("v4", SINGLE): Blocks(256, 256, 512),
    ("v4", BACK): Blocks(256, 256, 512),
}
"""By chip, where it differs from others, and kind: those with the shortest schedules that libtpu
makes of 2048 x 4096 x 4096."""


def blocks_for(chip: Chip | None, kind: str) -> Blocks:
    """Return the sizes that suit a chip and a kind of product."""
    return TABLE.get((chip.name if chip else "", kind), TABLE["", kind])


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
