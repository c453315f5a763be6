"""Attention of a few new queries of each sequence to a paged cache of keys and values.

:func:`empty` makes a :class:`Cache`, :func:`write` puts tokens into it, :func:`read` gives them
back and :func:`decode_attention` attends to it; :func:`reference` is the oracle.
"""

from jaxinf_kernels.decode_attention.api import decode_attention
from jaxinf_kernels.decode_attention.blocks import Blocks
from jaxinf_kernels.decode_attention.cache import Cache, Pages, empty, read, slots, write
from jaxinf_kernels.decode_attention.reference import reference

__all__ = [
    "Blocks", "Cache", "Pages", "decode_attention", "empty", "read", "reference", "slots", "write",
]  # fmt: skip
