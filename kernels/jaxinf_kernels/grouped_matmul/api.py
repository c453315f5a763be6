"""The grouped product for networks."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinf_kernels.formats import INT8, Format, Quantised
from jaxinf_kernels.grouped_matmul import gpu, tpu, xla
from jaxinf_kernels.grouped_matmul.blocks import Blocks
from jaxinf_kernels.grouped_matmul.problem import Operands, Problem
from jaxinf_kernels.operation import Kernel, Kernels, asked, operation

_multiply = operation(
    "grouped_matmul",
    Kernels(xla.multiply, tpu=Kernel(tpu.multiply), cuda=Kernel(gpu.multiply, refusal=gpu.refusal)),
    Kernels(xla.pull, tpu=Kernel(tpu.pull), cuda=Kernel(gpu.pull, refusal=gpu.refusal)),
)
MOST = (2**31 - 1) // 127**2
"""Products of two INT8 that an int32 can always hold the sum of."""


def grouped_matmul(
    x: Float[Array, "n k"],
    w: Float[Array, "groups _ m"] | Quantised,
    sizes: Int[Array, " _"],
    *,
    form: Format | None = None,
    implementation: str | None = None,
    chip: str | None = None,
    blocks: Blocks | None = None,
) -> Float[Array, "n m"]:
    r"""Multiply each row by the matrix of its group: the products of a mixture of experts.

    .. math:: y_i = x_i W_{g(i)}, \qquad \sum_{h < g(i)} n_h \le i < \sum_{h \le g(i)} n_h

    Sums are in float32 and rounded once. In INT8 each row of x has a scale :math:`s_i`, each column
    of each group's matrix one :math:`t_{gj}`, and :math:`y_{ij} = s_i t_{gj} \sum_k q_{ik} Q_{gkj}`
    with the sum over whole numbers exact.

    It differentiates forwards and backwards to any order; first derivatives in reverse mode are by
    a kernel where the value is: :math:`\bar x_i = \bar y_i W_{g(i)}^T` and :math:`\bar W_g =
    \sum_{i \in g} x_i^T \bar y_i`, which is 0 of a group without rows. In INT8 rounding is passed
    as if it were the identity (straight through): these hold with :math:`\hat x = s q` and
    :math:`\hat W = Q t`, both in x's dtype, in place of x and W. Elements that are held have no
    derivative, and their scales' is :math:`\bar t_{gj} = \sum_k Q_{gkj} \bar{\hat W}_{gkj}`.

    Args:
      x: rows, sorted by group; bfloat16 or float32. A batch goes through ``jax.vmap``.
      w: a matrix for each group, of x's dtype; or held in INT8 with one scale for each group and
        column, ``quantise(w, INT8, axis=-2)``, and then x is rounded to INT8 too.
      sizes: how many rows each group has; at most n together. Rows beyond give 0.
      form: INT8 to round x and w, where w is not held.
      implementation: ``"xla"``, ``"tpu"`` or ``"gpu"``; by default what fits the platform.
      chip: ``"v5e"`` say, for block sizes and for whether it multiplies INT8, where no mesh tells
        which chip is compiled for. A v4 does not, and widens it; any other is taken to.
      blocks: of the kernel, in place of the chip's.

    Returns:
      One row for each, in x's dtype.

    Raises:
      TypeError: when dtypes are not those above, or the format is not INT8.
      ValueError: when the shapes or scales do not belong together, or a chip has no such name.

    Reference:
      T. Gale et al., "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts", MLSys 2023;
      Y. Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for
      Conditional Computation", 2013 (straight through).
    """
    held = isinstance(w, Quantised)
    form = w.form if isinstance(w, Quantised) else form
    _check(x, w, sizes, form)
    problem = Problem(form, held, asked(implementation, chip, blocks))
    if isinstance(w, Quantised):
        own: Any = Quantised(w.elements[None], w.scales[None], None, w.form, w.axis)
    else:
        own = w[None]
    operands = Operands(x[None], own, sizes[None])
    return _multiply(*problem.flat(operands), spec=problem)[0][0]


def _check(x: Array, w: Any, sizes: Array, form: Format | None) -> None:
    """Raise unless these are one example's arrays."""
    if x.dtype not in (jnp.bfloat16, jnp.float32, jnp.float64):
        raise TypeError(f"x must be bfloat16 or float32, got {x.dtype}. Cast it with astype.")
    if not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise TypeError(f"sizes must be whole numbers, got {sizes.dtype}: astype(jnp.int32).")
    if form is not None and form != INT8:
        raise TypeError(f"the products are in x's dtype or in INT8, not in {form}: take INT8.")
    if not isinstance(w, Quantised) and x.dtype != w.dtype:
        raise TypeError(
            f"x and w must have one dtype, got {x.dtype} and {w.dtype}. Cast them with astype."
        )
    shapes = f"got {x.shape}, {w.shape} and {sizes.shape}"
    if x.ndim != 2 or len(w.shape) != 3 or sizes.ndim != 1:
        raise ValueError(
            f"grouped_matmul takes x [n, k], w [groups, k, m] and sizes [groups], {shapes}. "
            "Use jax.vmap for a batch."
        )
    groups, depth, columns = w.shape
    if x.shape[1] != depth or sizes.shape[0] != groups:
        raise ValueError(
            f"x [n, k] and w [groups, k, m] must share k, w and sizes [groups] "
            f"groups, {shapes}: transpose w, or name sizes for all of its groups."
        )
    if not groups:
        raise ValueError(f"there must be one group at least, {shapes}.")
    if isinstance(w, Quantised) and w.scales.shape != (groups, 1, columns):
        raise ValueError(
            f"w must have one scale for each group and column, [{groups}, 1, {columns}], got "
            f"{w.scales.shape}: quantise(w, INT8, axis=-2)."
        )
    if form is not None and not depth:
        raise ValueError(f"INT8 needs a summand at least, {shapes}: leave the format out.")
    if form is not None and depth > MOST:
        raise ValueError(
            f"sums of more than {MOST} products of INT8 may not fit int32, got {depth}: split k."
        )
