"""Scaled dot-product attention of one example.

:func:`attention` is what networks call; :func:`reference` is the oracle that it is tested against.
Batches come from ``jax.vmap``.
"""

from jaxinf_kernels.attention.api import attention
from jaxinf_kernels.attention.reference import reference

__all__ = ["attention", "reference"]
