"""Which number formats attention's products are in, and which pay on a chip."""

from dataclasses import dataclass

import numpy as np

from jaxinf_kernels.chips import Chip
from jaxinf_kernels.formats import E4M3, INT4, INT8, MXFP4, MXFP8, NVFP4, Format

TOKENS = 128
"""Queries that share a mean, and the side of a tile that shares a scale in the reverse rule."""


@dataclass(frozen=True)
class Precision:
    """Formats of attention's two products, and how they are made to fit."""

    qk: Format
    """Of queries and keys."""
    pv: Format | None = None
    """Of weights and values; bfloat16 by default."""
    smooth_k: bool = True
    """Subtract the keys' mean over all tokens; softmax does not see it."""
    smooth_q: bool = False
    """Subtract the mean over each 128 queries; its products with the keys are added in float32."""
    tokens: int = 1
    """Keys that share a scale, where the format has no blocks of its own; queries have one each."""
    gradients: Format | None = INT8
    """Of all products of the reverse rule but one; None for bfloat16."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"at least one token shares a scale, got tokens={self.tokens}.")
        if self.gradients is not None and self.gradients.block is not None:
            raise ValueError(
                f"gradients are in a format with one scale for a tile, got {self.gradients}: take "
                "INT8, E4M3 or E5M2, or None for bfloat16."
            )

    @property
    def peak(self) -> float:
        """What a weight of one is held as.

        A power of two as the largest of a block is where the scales of MX formats jump: a weight of
        one lies between two such.
        """
        form = self.pv
        if form is None:
            return 1.0
        if form in (MXFP8, MXFP4):
            return 1.375
        return form.largest * (E4M3.largest if form == NVFP4 else 1.0)

    @property
    def exponents(self) -> bool:
        """Whether weights are scaled by powers of two only, which changes no floating number."""
        return self.pv is None or not self.pv.whole

    @property
    def log2_peak(self) -> float:
        """The logarithm of :attr:`peak`."""
        return float(np.log2(self.peak))


SAGE8 = Precision(INT8)
"""INT8 and bfloat16: errors of one per cent (SageAttention)."""
SAGE8_BLOCK = Precision(INT8, tokens=512)
"""As SAGE8, with a scale for each 512 keys, which saves a TPU one multiplication a logit."""
SAGE8_FP8 = Precision(INT8, E4M3)
"""INT8 and FP8: four per cent (SageAttention2, 8 bits)."""
SAGE8_INT8 = Precision(INT8, INT8, tokens=512)
"""INT8 in both products: three per cent, and half of bfloat16's work for a TPU's matrix unit."""
SAGE4 = Precision(INT4, E4M3, smooth_q=True)
"""INT4 and FP8, queries smoothed too: a sixth (SageAttention2, 4 bits)."""
FP8 = Precision(E4M3, E4M3)
"""FP8 in both products: five per cent."""
MX8 = Precision(MXFP8, MXFP8)
"""MXFP8 in both products: six per cent."""
MX4 = Precision(MXFP4, MXFP4)
"""MXFP4 in both products: a quarter."""
NV4 = Precision(NVFP4, NVFP4)
"""NVFP4 in both products, weights in two levels: a fifth (SageAttention3)."""

PRECISIONS = {
    "sage8": SAGE8, "sage8_block": SAGE8_BLOCK, "sage8_fp8": SAGE8_FP8, "sage8_int8": SAGE8_INT8,
    "sage4": SAGE4, "fp8": FP8, "mxfp8": MX8, "mxfp4": MX4, "nvfp4": NV4,
}  # fmt: skip
"""By name, for tables and command lines; functions take the records themselves."""


COUNTED: dict[str, Precision | None] = {
    "v4": None, "v5e": SAGE8, "v5p": None, "v6e": None, "tpu7x": None,
}  # fmt: skip
"""TPUs on which a precision's schedule is shorter than bfloat16's (kernels/README.md): products
take half of the time, but the softmax's own work does not, and bounds it on most."""


def policy(chip: Chip | None) -> Precision | None:
    """Return the most exact precision with which attention takes less time than in bfloat16.

    Of TPUs this is counted in compiled programs; of GPUs it is whether their products take less.

    Args:
      chip: None where it is not known.

    Returns:
      The precision, or None for bfloat16.
    """
    if chip is None:
        return None
    if chip.name in COUNTED:
        return COUNTED[chip.name]
    return next((p for p in (SAGE8, FP8) if chip.pays(p.qk.name)), None)
