"""Operations that deserve a kernel of their own, one package an operation.

Each holds a readable reference, the fast default for any platform and, where they exist, kernels
for particular chips behind one function; :func:`explain` says which of them a program holds.
Nothing here knows of the rest of the library.
"""

from jaxinf_kernels import (
    attention,
    decode_attention,
    formats,
    grouped_matmul,
    lowbit_attention,
    quantized_matmul,
)
from jaxinf_kernels.explanation import explain

__all__ = [
    "attention", "decode_attention", "explain", "formats", "grouped_matmul", "lowbit_attention",
    "quantized_matmul",
]  # fmt: skip
