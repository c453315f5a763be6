"""Attention for networks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def attention(
    q: Float[Array, "n heads d"],
    k: Float[Array, "m heads d"],
    v: Float[Array, "m heads d"],
    *,
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "n heads d"]:
    r"""Scaled dot-product attention of one example, head by head.

    .. math:: o_i = \sum_j p_{ij} v_j, \qquad p_i = \mathrm{softmax}_j(q_i \cdot k_j / \sqrt d)

    Products of bfloat16 or float16 inputs are accumulated, and the softmax is taken, in float32.

    Args:
      q: queries.
      k: keys, of the queries' dtype.
      v: values, of the queries' dtype.
      mask: where an output (row) may see a key (column), for all heads or for each; ``None`` means
        everywhere. An output that may see nothing is 0, and so are its gradients.

    Returns:
      One output for each query, in the queries' dtype.

    Raises:
      TypeError: when the dtypes differ.
      ValueError: when the shapes do not belong together.

    Reference:
      A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, equation 1.
    """
    _check(q, k, v, mask)
    exact = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("nhd,mhd->hnm", q, k, preferred_element_type=exact) / q.shape[-1] ** 0.5
    if mask is None:
        return _mix(logits, v)
    mask = mask if mask.ndim == 3 else mask[None]
    seen = jnp.any(mask, axis=-1)
    # A row without any key is opened, so that nothing in it is infinite, and then set to zero.
    logits = jnp.where(mask | ~seen[..., None], logits, -jnp.inf)
    return jnp.where(seen.T[..., None], _mix(logits, v), 0)


def _mix(logits: Array, v: Array) -> Array:
    """The values' means under the softmax of the logits, in the values' dtype."""
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("hnm,mhd->nhd", weights, v, preferred_element_type=logits.dtype)
    return out.astype(v.dtype)


def _check(q: Array, k: Array, v: Array, mask: Array | None) -> None:
    """Raise unless these are one example's queries, keys, values and mask."""
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(
            f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}. "
            "Cast them with astype."
        )
    if q.ndim != 3 or k.shape != v.shape or k.shape[1:] != q.shape[1:]:
        raise ValueError(
            f"attention takes q [n, heads, d] and k, v [m, heads, d], got {q.shape}, {k.shape} and "
            f"{v.shape}. Use jax.vmap for a batch."
        )
    n, heads, _ = q.shape
    if mask is not None and mask.shape not in ((n, len(k)), (1, n, len(k)), (heads, n, len(k))):
        raise ValueError(
            f"mask must be [{n}, {len(k)}] or [{heads}, {n}, {len(k)}] for these queries and keys, "
            f"got {mask.shape}."
        )
