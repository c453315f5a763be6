"""Low-bit attention for networks."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf_kernels.attention import attention
from jaxinf_kernels.attention.api import check, head_by_head
from jaxinf_kernels.attention.api import prepare as as_problem
from jaxinf_kernels.attention.masks import Mask, cells
from jaxinf_kernels.lowbit_attention import backward, on_gpu, tpu, xla
from jaxinf_kernels.lowbit_attention.precision import Precision, policy
from jaxinf_kernels.lowbit_attention.problem import LowBit
from jaxinf_kernels.operation import Kernel, Kernels, asked, operation

_lowbit_attention = operation(
    "lowbit_attention",
    Kernels(xla.attend, tpu=Kernel(tpu.attend), cuda=Kernel(on_gpu.attend, on_gpu.refusal)),
    Kernels(backward.pull),
)


def lowbit_attention(
    q: Float[Array, "n heads d"],
    k: Float[Array, "m groups d"],
    v: Float[Array, "m groups e"],
    *,
    precision: Precision | None = None,
    mask: Mask | Bool[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    alibi: Float[Array, " heads"] | None = None,
    sinks: Float[Array, " heads"] | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    chip: str | None = None,
) -> Float[Array, "n heads e"] | tuple[Float[Array, "n heads e"], Float[Array, "n heads"]]:
    r"""Attention of one example with products of few bits, head by head.

    .. math:: o_i = \frac{\sum_j \hat p_{ij} \hat v_j}{\sum_j \hat p_{ij}}, \qquad
              p_{ij} = M_{ij} e^{a_{ij} - t_i}, \qquad
              a_{ij} \approx s\, q_i \cdot k_j + b_{ij} - \beta |i - j|

    Queries and keys are rounded after their means are subtracted, which makes their range small;
    what this takes from the logits is added in float32, or cancels in the softmax. The denominator
    is the sum of the rounded weights, so that equal values are returned as they are. Weights are
    relative to a power of two, so that rounding them to floating formats does not depend on sizes
    of blocks. Products are accumulated in int32 or float32.

    Reverse mode is low-bit training's: its products are rounded to ``precision.gradients`` too, in
    tiles of 128 tokens, but for the output's cotangent with the values, and the keys' mean times
    the rows' sums is added to the queries' cotangents. Forward mode, and derivatives of
    derivatives, pass through the rounding as if it were not there.

    Args:
      q: queries. A batch goes through ``jax.vmap``.
      k: keys, of the queries' dtype; ``groups`` divides ``heads``, and head h reads group
        ``h // (heads // groups)``.
      v: values, of the queries' dtype.
      precision: ``SAGE8`` say; by default what :func:`policy` says pays on the chip, and
        :func:`attention` in bfloat16 where nothing does or the chip is not known.
      mask: which query sees which key, as in :func:`attention`. Means are over all tokens.
      bias: added to the logits, [n, m] or [heads, n, m].
      alibi: slopes by which logits fall with the distance of positions.
      sinks: a logit for each head that takes its share of the softmax, and has no value.
      soft_cap: bound of the logits before bias and slopes.
      scale: of the products; :math:`1 / \sqrt d` by default.
      return_lse: also return the logarithm of the denominator.
      implementation: ``"xla"``, ``"tpu"`` or ``"gpu"``; by default what fits the platform.
      chip: ``"v5e"`` say, where no mesh tells which chip is compiled for: its block sizes, and
        which formats its matrix unit gains from. Others are widened to bfloat16 in front of it.

    Returns:
      One output for each query, in the values' dtype.

    Raises:
      TypeError: when the dtypes differ, or are not of 16 or 32 bits.
      ValueError: when the shapes do not belong together, or no chip has the name.

    Reference:
      J. Zhang et al., "SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference
      Acceleration", ICLR 2025; "SageAttention2: Efficient Attention with Thorough Outlier Smoothing
      and Per-thread INT4 Quantization", ICML 2025; "SageAttention3: Microscaling FP4 Attention for
      Inference and An Exploration of 8-Bit Training", NeurIPS 2025.
    """
    how = asked(implementation, chip)
    precision = policy(how.known) if precision is None else precision
    options: Any = dict(
        soft_cap=soft_cap, scale=scale, return_lse=return_lse, implementation=implementation,
        chip=chip,
    )  # fmt: skip
    if precision is None:
        return attention(q, k, v, mask=mask, bias=bias, alibi=alibi, sinks=sinks, **options)
    check(q, k, v, mask, bias, alibi, sinks, soft_cap)
    if q.dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise TypeError(
            f"low-bit attention rounds bfloat16, float16 or float32, got {q.dtype}: cast with "
            "astype, or use attention."
        )
    if mask is not None and not isinstance(mask, Mask):
        if mask.ndim == 3 and len(mask) > 1:
            arrays = (q, k, v, mask, bias, alibi, sinks)
            return head_by_head(lowbit_attention, arrays, precision=precision, **options)
        mask = cells(mask if mask.ndim == 2 else mask[0])
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    problem, given = as_problem(q, k, v, mask, bias, alibi, sinks, soft_cap, scale, how)
    spec = LowBit(problem, precision)
    out, lse = _lowbit_attention(*problem.flat(given), spec=spec)
    out, lse = jnp.moveaxis(out[0], 0, 1), lse[0].T
    return (out, lse) if return_lse else out
