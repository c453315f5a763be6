"""Products for training in few bits."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf_kernels.formats import Format
from jaxinf_kernels.operation import asked
from jaxinf_kernels.quantized_matmul.api import multiply
from jaxinf_kernels.quantized_matmul.operands import check, check_length, side
from jaxinf_kernels.quantized_matmul.problem import Problem
from jaxinf_kernels.quantized_matmul.sparse import prune


def quantized_linear(
    x: Float[Array, "n k"],
    w: Float[Array, "k m"],
    *,
    forward: Format | None = None,
    gradient: Format | tuple[Format, Format] | None = None,
    key: Array | None = None,
    sparsity: tuple[int, int] | None = None,
    bias: Float[Array, " m"] | None = None,
    activation: str | None = None,
    out_dtype: Any = None,
    implementation: str | None = None,
    chip: str | None = None,
) -> Float[Array, "n m"]:
    r"""Multiply floats in few bits, with gradients that pass straight through the rounding.

    .. math:: y = f(u), \qquad u = Q(x)\, Q(w) + b

    with Q the rounding to ``forward`` along k, in blocks as :func:`quantise` makes them. From the
    cotangent :math:`\bar y` reverse mode computes

    .. math:: g &= \bar y \circ f'(u), \qquad \bar b = \textstyle\sum_i g_i \\
              \bar x &= g\, Q(w)^T, \qquad \bar w = Q(x)^T g
                  &&\text{without a format for gradients} \\
              \bar x &= S(g)\, P(w)^T, \qquad \bar w = P(x)^T S'(g)
                  &&\text{with one}

    where S rounds g along m, and S' along n, to ``gradient``: at random where there is a key, so
    that their expectations are g (but for what scales that are powers of two clip), else to the
    nearest; P rounds
    to the partner's format along the same axis, m or n, to the nearest. n and m that are no
    multiple of a format's block are filled up with zeros for this. u is computed anew. With
    ``sparsity`` w is pruned first: then w stands for its kept weights in all of the above, and the
    cotangent of those that are not kept is zero. Forward mode, and every further derivative, is of
    :math:`Q(x)\, Q(w)` with the derivative of Q that of the identity, without ``gradient``.

    Args:
      x: rows, float32 or bfloat16. A batch goes through ``jax.vmap``.
      w: weights in floats.
      forward: the format of both matrices in the value; None multiplies the floats.
      gradient: the format of both matrices in the products of reverse mode, or two: the
        cotangent's and its partner's, ``(E5M2, E4M3)`` say. None as above.
      key: rounds cotangents at random; those of a batch alike unless each has its own.
      sparsity: (N, M): only the N largest of every M weights along k count, (2, 4) say.
      bias: added to the sums.
      activation: ``"gelu"`` (with tanh), ``"silu"``, ``"relu"`` or None, in float32.
      out_dtype: of the result; by default x's.
      implementation: as in :func:`quantized_matmul`.
      chip: as there.

    Returns:
      The products.

    Raises:
      TypeError: for whole numbers, or dtypes that differ.
      ValueError: for shapes that do not belong together, blocks or groups that do not divide k, a
        key without a format to round to, and sums of whole numbers that may leave 32 bits.

    Reference:
      Y. Bengio, N. Léonard and A. Courville, "Estimating or Propagating Gradients Through
      Stochastic Neurons for Conditional Computation", 2013 (straight through); S. Gupta et al.,
      "Deep Learning with Limited Numerical Precision", ICML 2015 (rounding at random);
      P. Micikevicius et al., "FP8 Formats for Deep Learning", 2022; A. Zhou et al., "Learning N:M
      Fine-grained Structured Sparse Neural Networks From Scratch", ICLR 2021.
    """
    how = asked(implementation, chip)
    check(x, w, bias, activation)
    if x.dtype != w.dtype:
        raise TypeError(f"x and w must have one dtype, got {x.dtype} and {w.dtype}: use astype.")
    if key is not None and gradient is None:
        raise ValueError("a key rounds cotangents at random: name a format for gradients, too.")
    pair = (gradient, gradient) if isinstance(gradient, Format) else gradient
    (n, k), m = x.shape, w.shape[1]
    check_length(k, (forward,))
    check_length(max(n, m), pair or (None,))
    if sparsity is not None:
        w = jnp.where(prune(jax.lax.stop_gradient(w), *sparsity), w, 0)
    (left, ours), (right, theirs) = side(x, forward), side(w, forward)
    extras = [] if bias is None else [bias[None]]
    impl = None
    if key is not None:
        impl = jax.random.key_impl(key)
        extras.append(jax.random.key_data(key)[None])
    spec = Problem(
        left, right, bias is not None, activation, jnp.dtype(out_dtype or x.dtype), pair, impl,
        how,
    )  # fmt: skip
    return multiply(*ours, *theirs, *extras, spec=spec)[0][0]
