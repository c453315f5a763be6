"""What the numbers of a format are, and what scales they share."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp


@dataclass(frozen=True)
class Format:
    """Numbers of a few bits, blocks of which share a scale.

    A block of x is held as elements e and a scale s with x about s e. Formats of one level have one
    scale for a block; NVFP4 has a second, in float32, for the whole array.
    """

    name: str
    dtype: Any
    """Of the elements."""
    largest: float
    """Magnitude of an element."""
    scale: Any = jnp.float32
    """Dtype of the scales."""
    block: int | None = None
    """Elements that share a scale; None for all along the axis."""
    mantissa: int = 0
    """Bits after the leading one; of whole numbers none."""
    least: int = 0
    """Exponent of two of the smallest normal number; of whole numbers 0: their step is one."""

    @property
    def whole(self) -> bool:
        """Whether elements are whole numbers."""
        return jnp.issubdtype(self.dtype, jnp.integer)

    @property
    def bits(self) -> int:
        """Bits of an element, without its share of the scale."""
        return 4 if self.dtype in (jnp.int4, jnp.float4_e2m1fn) else 8

    def __str__(self) -> str:
        return self.name


INT8 = Format("int8", jnp.int8, 127.0)
"""Whole numbers from -127 to 127; -128 is not used, so that signs are symmetric."""
INT4 = Format("int4", jnp.int4, 7.0)
"""Whole numbers from -7 to 7."""
E4M3 = Format("e4m3", jnp.float8_e4m3fn, 448.0, mantissa=3, least=-6)
"""FP8 with three bits of mantissa."""
E5M2 = Format("e5m2", jnp.float8_e5m2, 57344.0, mantissa=2, least=-14)
"""FP8 with two bits of mantissa, for gradients."""
MXFP8 = Format("mxfp8", jnp.float8_e4m3fn, 448.0, jnp.float8_e8m0fnu, 32, mantissa=3, least=-6)
"""E4M3 with a power of two for each 32 (OCP Microscaling Formats 1.0, 2023)."""
MXFP4 = Format("mxfp4", jnp.float4_e2m1fn, 6.0, jnp.float8_e8m0fnu, 32, mantissa=1, least=0)
"""E2M1 with a power of two for each 32 (OCP Microscaling Formats 1.0, 2023)."""
NVFP4 = Format("nvfp4", jnp.float4_e2m1fn, 6.0, jnp.float8_e4m3fn, 16, mantissa=1, least=0)
"""E2M1 with an E4M3 scale for each 16 and a float32 one for the array."""

FORMATS = {f.name: f for f in (INT8, INT4, E4M3, E5M2, MXFP8, MXFP4, NVFP4)}
"""By name, for tables and command lines; functions take the formats themselves."""
