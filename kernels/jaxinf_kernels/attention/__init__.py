"""Scaled dot-product attention of one example.

:func:`attention` is what networks call; :func:`reference` is the oracle that it is tested against;
:mod:`masks` says which query sees which key. Batches come from ``jax.vmap``.
"""

from jaxinf_kernels.attention import masks
from jaxinf_kernels.attention.api import attention
from jaxinf_kernels.attention.reference import reference

__all__ = ["attention", "masks", "reference"]
