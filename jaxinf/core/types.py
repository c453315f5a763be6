"""Names for the types that stand in the library's signatures."""

from typing import Any

import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

Key = PRNGKeyArray
"""A typed key, made by ``jax.random.key``."""

Scalar = Float[Array, ""] | Float[np.ndarray, ""] | float
"""A number: a float or a floating-point array of shape ``()``."""

Leaf = Any
"""What stands where a record has a leaf: an array, a tracer, or a transformation's marker."""

__all__ = ["Array", "ArrayLike", "Float", "Key", "Leaf", "PyTree", "Scalar"]
