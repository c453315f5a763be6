"""Triangular roots of covariances."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def triangular(root: Float[Array, "n k"]) -> Float[Array, "n n"]:
    """Return the lower triangular L with L L^T = R R^T for any root R, by its QR decomposition."""
    n, k = root.shape
    if k < n:
        root = jnp.concatenate([root, jnp.zeros((n, n - k), root.dtype)], axis=1)
    return jnp.linalg.qr(root.T, mode="r").T
