"""Attention for networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf_kernels.attention import on_gpu, on_tpu, xla
from jaxinf_kernels.attention.masks import Mask, cells
from jaxinf_kernels.attention.problem import Operands, Problem
from jaxinf_kernels.attention.tpu import Blocks
from jaxinf_kernels.operation import How, Kernels, asked, operation

_attention = operation(
    "attention",
    Kernels(xla.attend, tpu=on_tpu.VALUE, cuda=on_gpu.VALUE, letters=on_tpu.letters),
    Kernels(None, tpu=on_tpu.REVERSE, cuda=on_gpu.REVERSE, letters=on_tpu.pull_letters),
)


def attention(
    q: Float[Array, "n heads d"],
    k: Float[Array, "m groups d"],
    v: Float[Array, "m groups e"],
    *,
    mask: Mask | Bool[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    alibi: Float[Array, " heads"] | None = None,
    sinks: Float[Array, " heads"] | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    chip: str | None = None,
    blocks: Blocks | None = None,
) -> Float[Array, "n heads e"] | tuple[Float[Array, "n heads e"], Float[Array, "n heads"]]:
    r"""Scaled dot-product attention of one example, head by head.

    .. math:: o_i = \frac{\sum_j M_{ij} e^{a_{ij}} v_j}{e^{c} + \sum_j M_{ij} e^{a_{ij}}}, \qquad
              a_{ij} = t \tanh(s\, q_i \cdot k_j / t) + b_{ij} - \beta |i - j|

    of which mask M, bias b, slope :math:`\beta`, sink c and cap t are optional. Products of
    bfloat16 inputs are accumulated, and the softmax is taken, in float32; weights are rounded to
    the values' dtype before they are summed, so that equal values are returned as they are.

    It differentiates forwards and backwards to any order; first derivatives in reverse mode are by
    a kernel where the value is.

    Args:
      q: queries. A batch goes through ``jax.vmap``.
      k: keys, of the queries' dtype; ``groups`` divides ``heads``, and head h reads group
        ``h // (heads // groups)``.
      v: values, of the queries' dtype.
      mask: which query sees which key: ``masks.causal() & masks.window(128)`` say, or an array, for
        all heads or for each. An output that may see nothing is 0, and so are its gradients.
      bias: added to the logits, [n, m] or [heads, n, m].
      alibi: slopes by which logits fall with the distance of positions.
      sinks: a logit for each head that takes its share of the softmax, and has no value.
      soft_cap: bound of the logits before bias and slopes.
      scale: of the products; :math:`1 / \sqrt d` by default.
      return_lse: also return the logarithm of the denominator, by which parts of a sequence are
        merged; minus infinity where nothing is seen.
      implementation: ``"xla"``, ``"tpu"`` or ``"gpu"``; by default what fits the platform.
      chip: ``"v5e"`` say, for block sizes where no mesh tells which chip is compiled for.
      blocks: sizes of blocks; by default those of a table of the chip.

    Returns:
      One output for each query, in the values' dtype.

    Raises:
      TypeError: when the dtypes differ.
      ValueError: when the shapes do not belong together.

    Reference:
      A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, equation 1; O. Press et al.,
      "Train Short, Test Long", ICLR 2022 (slopes); Gemma 2 (2024) (cap); gpt-oss (2025) (sinks).
    """
    check(q, k, v, mask, bias, alibi, sinks, soft_cap)
    if mask is not None and not isinstance(mask, Mask):
        if mask.ndim == 3 and len(mask) > 1:
            return head_by_head(
                attention,
                (q, k, v, mask, bias, alibi, sinks),
                soft_cap=soft_cap, scale=scale, return_lse=return_lse,
                implementation=implementation, chip=chip, blocks=blocks,
            )  # fmt: skip
        mask = cells(mask if mask.ndim == 2 else mask[0])
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    how = asked(implementation, chip, blocks)
    problem, operands = prepare(q, k, v, mask, bias, alibi, sinks, soft_cap, scale, how)
    out, lse = _attention(*problem.flat(operands), spec=problem)
    out, lse = jnp.moveaxis(out[0], 0, 1), lse[0].T
    return (out, lse) if return_lse else out


def prepare(
    q: Array, k: Array, v: Array, mask: Mask | None, bias: Array | None, alibi: Array | None,
    sinks: Array | None, soft_cap: float | None, scale: float, how: How,
) -> tuple[Problem, Operands]:  # fmt: skip
    """Return one example as a problem and arrays with a batch of one, heads before positions."""
    leaves, tree = jax.tree.flatten(mask)
    problem = Problem(
        None if mask is None else tree,
        () if mask is None else mask.kinds,
        (bias is not None, alibi is not None, sinks is not None),
        scale,
        soft_cap,
        how,
    )
    if bias is not None:
        bias = bias[None, None] if bias.ndim == 2 else bias[None]
    alibi, sinks = (None if a is None else a[None] for a in (alibi, sinks))
    q, k, v = (jnp.moveaxis(a, 1, 0)[None] for a in (q, k, v))
    return problem, Operands(q, k, v, bias, alibi, sinks, tuple(a[None] for a in leaves))


def head_by_head(function: Callable[..., Any], arrays: Any, **options: Any) -> Any:
    """Attend by a function with a mask for each head: heads become a batch."""
    q, k, v, mask, bias, alibi, sinks = arrays
    shared = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(a, shared, axis=1) for a in (k, v))
    own = bias is not None and bias.ndim == 3

    def one(q: Array, k: Array, v: Array, mask: Array, *extras: Any) -> Any:
        bias, alibi, sinks = extras
        alibi, sinks = (None if a is None else a[None] for a in (alibi, sinks))
        found = function(
            q[:, None], k[:, None], v[:, None],
            mask=mask, bias=bias, alibi=alibi, sinks=sinks, **options,
        )  # fmt: skip
        return jax.tree.map(lambda a: a[:, 0], found)

    axes = (1, 1, 1, 0, 0 if own else None, 0 if alibi is not None else None,
            0 if sinks is not None else None)  # fmt: skip
    return jax.vmap(one, in_axes=axes, out_axes=1)(q, k, v, mask, bias, alibi, sinks)


def check(
    q: Array, k: Array, v: Array, mask: Any, bias: Any, alibi: Any, sinks: Any, soft_cap: Any
) -> None:
    """Raise unless these are one example's arrays."""
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(
            f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}. "
            "Cast them with astype."
        )
    shapes = f"got {q.shape}, {k.shape} and {v.shape}"
    if q.ndim != 3 or k.ndim != 3 or k.shape[:2] != v.shape[:2] or k.shape[2] != q.shape[2]:
        raise ValueError(
            f"attention takes q [n, heads, d], k [m, groups, d] and v [m, groups, e], {shapes}. "
            "Use jax.vmap for a batch."
        )
    (n, heads, _), (m, groups, _) = q.shape, k.shape
    if not groups or heads % groups:
        raise ValueError(
            f"the heads of keys must divide those of queries, {shapes}: repeat keys and values."
        )
    for name, array in (("mask", mask), ("bias", bias)):
        if array is None or isinstance(array, Mask):
            continue
        if array.shape not in ((n, m), (1, n, m), (heads, n, m)):
            raise ValueError(
                f"{name} must be [{n}, {m}] or [{heads}, {n}, {m}] for these queries and keys, "
                f"got {array.shape}."
            )
    for name, array in (("alibi", alibi), ("sinks", sinks)):
        if array is not None and array.shape != (heads,):
            raise ValueError(
                f"{name} must have one number for each of {heads} heads, got {array.shape}."
            )
    if isinstance(mask, Mask):
        mask.check(n, m)
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap must be positive, got {soft_cap}: leave it out for none.")
