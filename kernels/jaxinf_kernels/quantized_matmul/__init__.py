"""Products of matrices of which one or both are held in few bits.

:func:`quantized_matmul` is for weights that stay as they are, :func:`quantized_linear` for training
in few bits; :class:`Sparse` holds weights of which N in M are not zero. :func:`reference` is the
oracle that they are tested against. Batches come from ``jax.vmap``.
"""

from jaxinf_kernels.quantized_matmul.api import quantized_matmul
from jaxinf_kernels.quantized_matmul.reference import reference
from jaxinf_kernels.quantized_matmul.sparse import Sparse, prune, sparsify
from jaxinf_kernels.quantized_matmul.train import quantized_linear

__all__ = ["Sparse", "prune", "quantized_linear", "quantized_matmul", "reference", "sparsify"]
