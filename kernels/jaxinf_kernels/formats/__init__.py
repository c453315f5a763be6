"""Number formats of a few bits, and arrays held in them.

:func:`quantise` makes a :class:`Quantised` of an array and a :class:`Format`; ``dequantise`` gives
its numbers back. Every operation takes such arrays and none has formats of its own.
"""

from jaxinf_kernels.formats.format import (
    E4M3,
    E5M2,
    FORMATS,
    INT4,
    INT8,
    MXFP4,
    MXFP8,
    NVFP4,
    Format,
)
from jaxinf_kernels.formats.quantised import Quantised, quantise
from jaxinf_kernels.formats.rounding import cast, stochastic

__all__ = [
    "E4M3", "E5M2", "FORMATS", "INT4", "INT8", "MXFP4", "MXFP8", "NVFP4",
    "Format", "Quantised", "cast", "quantise", "stochastic",
]  # fmt: skip
