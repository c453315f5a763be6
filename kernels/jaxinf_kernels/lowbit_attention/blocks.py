"""Sizes of blocks by chip."""

from jaxinf_kernels.attention.blocks import Blocks
from jaxinf_kernels.chips import Chip
from jaxinf_kernels.lowbit_attention.precision import Precision


def blocks_for(chip: Chip | None, precision: Precision, masked: bool) -> Blocks:
    """Return sizes of blocks: those with the shortest schedules of 4096 queries and keys.

    Args:
      chip: None where it is not known.
      precision: of the products.
      masked: whether not all keys are seen, so that smaller blocks leave out more.
    """
    wide = chip is not None and chip.unit == 256
    if precision.pv is not None and precision.pv.block is not None:
        return Blocks(256, 1024, 512)  # maxima of blocks of weights take room
    if masked:
        return Blocks(512, 1024 if wide else 512, 512)
    return Blocks(512, 2048, 1024 if wide and precision.tokens != 512 else 512)
