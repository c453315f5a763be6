"""Products for inference: weights stay as they are held."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf_kernels.formats import Format, Quantised
from jaxinf_kernels.operation import Kernel, Kernels, asked, operation
from jaxinf_kernels.quantized_matmul import gpu, tpu, xla
from jaxinf_kernels.quantized_matmul.backward import PLAIN, pull
from jaxinf_kernels.quantized_matmul.operands import check, check_length, side
from jaxinf_kernels.quantized_matmul.problem import Problem
from jaxinf_kernels.quantized_matmul.sparse import Sparse

multiply = operation(
    "quantized_matmul",
    Kernels(xla.multiply, tpu=Kernel(tpu.multiply), cuda=Kernel(gpu.multiply, refusal=gpu.refusal)),
    Kernels(
        partial(pull, products=PLAIN),
        tpu=Kernel(partial(pull, products=tpu.products())),
        cuda=Kernel(partial(pull, products=gpu.products()), refusal=gpu.refusal),
    ),
)


def quantized_matmul(
    x: Float[Array, "n k"] | Quantised,
    w: Float[Array, "k m"] | Quantised | Sparse,
    *,
    activations: Format | None = None,
    bias: Float[Array, " m"] | None = None,
    activation: str | None = None,
    out_dtype: Any = None,
    implementation: str | None = None,
    chip: str | None = None,
) -> Float[Array, "n m"]:
    r"""Multiply by weights that are held in few bits, scale, shift and activate.

    .. math:: y_{ij} = f\Big(\sum_k s^x_{ik} e^x_{ik}\, s^w_{kj} e^w_{kj} + b_j\Big)

    with elements e and the scales s of their blocks along k. What is summed:

    - whole numbers by whole numbers, each row and column with one scale: elements, in int32 without
      any rounding; scaled once;
    - whole numbers by whole numbers, and FP8 by FP8, in blocks of a multiple of 128: the same block
      by block, whose scaled sums are added in float32;
    - all else: elements times the scales of their blocks, rounded to the floats' dtype (bfloat16
      where neither matrix is floats; exact for MXFP8, MXFP4 and NVFP4), in float32. What all of k
      shares, and NVFP4's outer scale, multiply the sums.

    It differentiates forwards and backwards to any order, with respect to floats, scales and bias;
    quantising x on the way has the derivative of the identity, so that
    :math:`\bar x = (\bar y \circ f') \hat w^T` with the numbers :math:`\hat w` that w stands for.

    Args:
      x: rows, float32 or bfloat16, or :class:`Quantised` along k. A batch goes through
        ``jax.vmap``.
      w: weights, :class:`Quantised` along k (``quantise(w, form, axis=-2)``), :class:`Sparse` or
        floats. Scales [blocks, 1] serve all columns; those of shape [1, 1] the whole matrix.
      activations: what x is quantised to on the way: a scale for each row, or for each of the
        format's blocks (``dataclasses.replace(INT8, block=128)`` has blocks of 128). None leaves
        x as it is.
      bias: added to the sums.
      activation: ``"gelu"`` (with tanh), ``"silu"``, ``"relu"`` or None, in float32.
      out_dtype: of the result; by default x's, float32 where x is :class:`Quantised`.
      implementation: ``"xla"``, ``"tpu"`` or ``"gpu"``; by default what fits the platform.
      chip: ``"v5e"`` say, where no mesh tells which chip is compiled for. TPU v4, which multiplies
        neither int8 nor FP8, has to be told by one or the other.

    Returns:
      The products. A row of x, or a column of w, with a number that is not finite is NaN in all of
      its block, and so are the products of it; a scale of zero stands for zeros.

    Raises:
      TypeError: for whole numbers without scales.
      ValueError: for shapes that do not belong together, scales along another axis, activations
        for an x that is quantised, and k above 131071 where sums are in int32.

    Reference:
      B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference", CVPR 2018; OCP Microscaling Formats 1.0, 2023;
      A. Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (2:4).
    """
    how = asked(implementation, chip)
    check(x, w, bias, activation)
    if isinstance(x, Quantised) and activations is not None:
        raise ValueError("x is quantised: leave activations out, or dequantise it first.")
    own = x.form if isinstance(x, Quantised) else activations
    check_length(w.shape[0], (own, getattr(w, "form", None)))
    if out_dtype is None:
        out_dtype = jnp.float32 if isinstance(x, Quantised) else x.dtype
    (left, ours), (right, theirs) = side(x, activations), side(w)
    spec = Problem(
        left, right, bias is not None, activation, jnp.dtype(out_dtype),
        how=how,
    )  # fmt: skip
    extras = [] if bias is None else [bias[None]]
    return multiply(*ours, *theirs, *extras, spec=spec)[0][0]
