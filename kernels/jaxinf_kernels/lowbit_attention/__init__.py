"""Attention with products of few bits, for one example.

:func:`lowbit_attention` is what networks call, with one of the named precisions or what pays on the
chip; :func:`reference` says in float64 what it computes.
"""

from jaxinf_kernels.lowbit_attention.api import lowbit_attention
from jaxinf_kernels.lowbit_attention.precision import (
    FP8,
    MX4,
    MX8,
    NV4,
    PRECISIONS,
    SAGE4,
    SAGE8,
    SAGE8_BLOCK,
    SAGE8_FP8,
    SAGE8_INT8,
    Precision,
    policy,
)
from jaxinf_kernels.lowbit_attention.reference import reference

__all__ = [
    "FP8", "MX4", "MX8", "NV4", "PRECISIONS", "SAGE4", "SAGE8", "SAGE8_BLOCK", "SAGE8_FP8",
    "SAGE8_INT8", "Precision", "lowbit_attention", "policy", "reference",
]  # fmt: skip
