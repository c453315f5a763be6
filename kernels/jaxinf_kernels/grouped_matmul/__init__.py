"""Products of rows by the matrix of their group, as mixtures of experts need.

:func:`grouped_matmul` is what networks call; :func:`reference` is the oracle that it is tested
against. Batches come from ``jax.vmap``.
"""

from jaxinf_kernels.grouped_matmul.api import grouped_matmul
from jaxinf_kernels.grouped_matmul.blocks import Blocks
from jaxinf_kernels.grouped_matmul.reference import reference

__all__ = ["Blocks", "grouped_matmul", "reference"]
