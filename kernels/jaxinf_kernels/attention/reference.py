"""Attention as it is written down: the oracle for everything faster."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf_kernels.attention.masks import Mask


def reference(
    q: Float[Array, "n heads d"],
    k: Float[Array, "m groups d"],
    v: Float[Array, "m groups e"],
    *,
    mask: Mask | Bool[Array, "*heads n m"] | None = None,
    bias: Float[Array, "*heads n m"] | None = None,
    alibi: Float[Array, " heads"] | None = None,
    sinks: Float[Array, " heads"] | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> tuple[Float[Array, "n heads e"], Float[Array, "n heads"]]:
    r"""Scaled dot-product attention, head by head, in the precision of its inputs.

    .. math:: o_i = \frac{\sum_j M_{ij} e^{a_{ij}} v_j}{e^{c} + \sum_j M_{ij} e^{a_{ij}}}, \qquad
              a_{ij} = t \tanh(q_i \cdot k_j / (t \sqrt d)) + b_{ij} - \beta |i - j|

    with the mask's :math:`M` in {0, 1}; an output that may see nothing is 0. Arguments as in
    :func:`attention`.

    Returns:
      One output for each query, and the logarithms of the denominators.

    Reference:
      A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, equation 1.
    """
    (n, heads, d), (m, groups, _) = q.shape, k.shape
    k, v = (jnp.repeat(a, heads // groups, axis=1) for a in (k, v))
    logits = jnp.einsum("nhd,mhd->hnm", q, k) * (d**-0.5 if scale is None else scale)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    if bias is not None:
        logits = logits + bias
    if alibi is not None:
        distance = jnp.abs(jnp.arange(n)[:, None] - jnp.arange(m)[None])
        logits -= alibi[:, None, None] * distance[None]
    seen = mask.dense(n, m) if isinstance(mask, Mask) else jnp.ones(()) if mask is None else mask
    seen = jnp.broadcast_to(seen, logits.shape) != 0
    highest = jnp.max(logits, axis=-1, where=seen, initial=-jnp.inf)
    highest = highest if sinks is None else jnp.maximum(highest, sinks[:, None])
    highest = jnp.where(jnp.isfinite(highest), highest, 0)
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits - highest[..., None], 0)), 0)
    total = jnp.sum(weights, axis=-1)
    total = total if sinks is None else total + jnp.exp(sinks[:, None] - highest)
    safe = jnp.where(total > 0, total, 1)
    out = jnp.einsum("hnm,mhe->nhe", weights / safe[..., None], v)
    return out, jnp.where(total > 0, highest + jnp.log(safe), -jnp.inf).T
