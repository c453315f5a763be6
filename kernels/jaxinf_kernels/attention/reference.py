"""Attention as it is written down: the oracle for everything faster."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def reference(
    q: Float[Array, "n heads d"],
    k: Float[Array, "m heads d"],
    v: Float[Array, "m heads e"],
    *,
    mask: Bool[Array, "*heads n m"] | None = None,
) -> Float[Array, "n heads e"]:
    r"""Scaled dot-product attention, head by head, in the precision of its inputs.

    .. math:: o_i = \sum_j p_{ij} v_j, \qquad
              p_{ij} = \frac{M_{ij} \exp(q_i \cdot k_j / \sqrt d)}
                            {\sum_l M_{il} \exp(q_i \cdot k_l / \sqrt d)}

    with the mask's :math:`M` in {0, 1}; an output that may see nothing is 0.

    Args:
      q: queries.
      k: keys.
      v: values.
      mask: where an output (row) may see a key (column), for all heads or for each; ``None`` means
        everywhere.

    Returns:
      One output for each query.

    Reference:
      A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, equation 1.
    """
    logits = jnp.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    seen = jnp.ones(logits.shape, bool) if mask is None else jnp.broadcast_to(mask, logits.shape)
    highest = jnp.max(logits, axis=-1, keepdims=True, where=seen, initial=-jnp.inf)
    highest = jnp.where(jnp.isfinite(highest), highest, 0)
    weights = jnp.where(seen, jnp.exp(jnp.where(seen, logits - highest, 0)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return jnp.einsum("hnm,mhe->nhe", weights / jnp.where(total > 0, total, 1), v)
