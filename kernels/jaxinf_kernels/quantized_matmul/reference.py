"""Products of quantised matrices as they are written down: the oracle for everything faster."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf_kernels.formats import Quantised
from jaxinf_kernels.quantized_matmul.problem import ACTIVATIONS
from jaxinf_kernels.quantized_matmul.sparse import Sparse


def reference(
    x: Float[Array, "n k"] | Quantised,
    w: Float[Array, "k m"] | Quantised | Sparse,
    *,
    bias: Float[Array, " m"] | None = None,
    activation: str | None = None,
) -> Float[Array, "n m"]:
    r"""Multiply the numbers that matrices stand for, in the widest precision that JAX is set to.

    .. math:: y_{ij} = f\Big(\sum_k s^x_{ik} e^x_{ik}\, s^w_{kj} e^w_{kj} + b_j\Big)

    with elements e, their scales s and the activation f. Arguments as in
    :func:`quantized_matmul`, without a format for x: quantise it first.

    Returns:
      The products, in float64 where it is enabled, else float32.
    """
    total = jnp.matmul(numbers(x), numbers(w), precision=jax.lax.Precision.HIGHEST)
    total = total if bias is None else total + bias[None].astype(total.dtype)
    return total if activation is None else ACTIVATIONS[activation](total)


def numbers(a: Any) -> Array:
    """Return what a matrix stands for, in the widest precision that JAX is set to."""
    exact = jnp.result_type(float)
    a = a.dense() if isinstance(a, Sparse) else a
    if not isinstance(a, Quantised):
        return a.astype(exact)
    scales = jnp.repeat(a.scales.astype(exact), a.block, axis=a.axis)
    outer = 1.0 if a.outer is None else a.outer.astype(exact)
    return a.elements.astype(exact) * scales * outer
