"""Sizes of blocks by chip."""

from jaxinf_kernels.attention.tpu import Blocks
from jaxinf_kernels.chips import Chip
from jaxinf_kernels.lowbit_attention.precision import Precision


def blocks_for(chip: Chip | None, precision: Precision, features: int) -> Blocks:
    """Return sizes of blocks.

    Args:
      chip: None where it is not known.
      precision: of the products.
      features: of a query.
    """
    return Blocks(512, 512, 512)
