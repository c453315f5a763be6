"""Low-bit attention as programs for GPUs hold it: which formats a chip has, and which kernel."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.attention.gpu_blocks import refusal_of_sizes
from jaxinf_kernels.formats import E4M3, INT8, MXFP4, MXFP8, NVFP4
from jaxinf_kernels.lowbit_attention import gpu, gpu_blackwell
from jaxinf_kernels.lowbit_attention.precision import Precision
from jaxinf_kernels.lowbit_attention.problem import LowBit

TAKEN = {"hopper": (INT8, E4M3), "blackwell": (INT8, E4M3, MXFP8, MXFP4, NVFP4)}
"""Formats of queries and keys that tensor cores multiply."""
NAMES = {INT8: "SAGE8_FP8", E4M3: "FP8"}
"""Precisions with weights in E4M3."""


def refusal(spec: LowBit, arrays: Any) -> str | None:
    """Return why the kernels do not take a problem, and what mends that; None where they do."""
    precision, chip, v = spec.precision, spec.how.gpu, arrays[2]
    if chip.generation not in TAKEN:
        return f"there is no kernel for {chip.name}: name chip='h100', 'h200' or 'b200'"
    taken = TAKEN[chip.generation]
    if precision.qk not in taken:
        return (
            f"{chip.generation.capitalize()} multiplies queries and keys in "
            f"{', '.join(map(str, taken))}, not in {precision.qk}: take "
            f"precision={nearest(precision, taken)}"
        )
    if precision.pv not in (None, E4M3):
        return (
            f"the kernel has weights in bfloat16 and E4M3, not in {precision.pv}: take "
            f"precision={nearest(precision, taken)}"
        )
    if precision.smooth_q:
        return "the kernel does not smooth queries: take a precision with smooth_q=False"
    if v.dtype not in (jnp.bfloat16, jnp.float16):
        return f"the kernel returns bfloat16 and float16, not {v.dtype}: cast with astype"
    return refusal_of_sizes(*arrays[:3])


def nearest(precision: Precision, taken: Any) -> str:
    """Return what is called the precision that a chip takes and that is nearest to one."""
    form = precision.qk
    if form not in taken:
        form = E4M3 if form.bits == 8 else INT8
    return NAMES.get(form, f"Precision({form.name.upper()}, E4M3)")


def attend(*arrays: Array, spec: LowBit, interpret: Any = False) -> tuple[Array, Array]:
    """See :func:`gpu.attend` and :func:`gpu_blackwell.attend`."""
    kernel = gpu_blackwell if spec.how.gpu.blackwell else gpu
    return kernel.attend(*arrays, spec=spec, interpret=interpret)
