"""Attention to a cache as it is written down: the oracle for everything faster."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinf_kernels.decode_attention.cache import Cache


def reference(
    q: Float[Array, "sequences queries heads d"],
    cache: Cache,
    page_table: Int[Array, "sequences max_pages"],
    lengths: Int[Array, " sequences"],
    *,
    query_lengths: Int[Array, " sequences"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    alibi: Float[Array, " heads"] | None = None,
    sinks: Float[Array, " heads"] | None = None,
    window: int | None = None,
) -> tuple[Float[Array, "sequences queries heads e"], Float[Array, "sequences queries heads"]]:
    r"""Attention to a paged cache, query by query, in the precision of the queries.

    .. math:: o_i = \frac{\sum_{j \le i} e^{a_{ij}} v_j}{e^{c} + \sum_{j \le i} e^{a_{ij}}}, \qquad
              a_{ij} = t \tanh(s\, q_i \cdot k_j / t) - \beta (i - j)

    Arguments as in :func:`decode_attention`; page table and lengths are known numbers.

    Returns:
      Outputs, and the logarithms of the denominators; 0 and minus infinity where nothing is seen.
    """
    sequences, queries, heads, d = q.shape
    repeats, width = heads // cache.groups, cache.values.width
    counts = np.full(sequences, queries) if query_lengths is None else np.asarray(query_lengths)
    outs = jnp.zeros((sequences, queries, heads, width), q.dtype)
    lses = jnp.full((sequences, queries, heads), -jnp.inf, q.dtype)
    for b in range(sequences):
        length = int(lengths[b])
        pages = page_table[b, : -(-length // cache.page_size)]
        k, v = (
            jnp.repeat(half.at(pages).dequantise(q.dtype), repeats, axis=2).reshape(
                -1, heads, half.width
            )[:length]
            for half in (cache.keys, cache.values)
        )
        for i in range(int(counts[b])):
            position = length - int(counts[b]) + i
            begin = 0 if window is None else max(0, position - window + 1)
            if position < 0:
                lses = lses if sinks is None else lses.at[b, i].set(sinks)
                continue
            logits = jnp.einsum("hd,mhd->hm", q[b, i], k[begin : position + 1])
            logits = logits * (d**-0.5 if scale is None else scale)
            if soft_cap is not None:
                logits = soft_cap * jnp.tanh(logits / soft_cap)
            if alibi is not None:
                logits -= alibi[:, None] * (position - jnp.arange(begin, position + 1))[None]
            top = jnp.max(logits, axis=1)
            top = top if sinks is None else jnp.maximum(top, sinks)
            weights = jnp.exp(logits - top[:, None])
            total = jnp.sum(weights, axis=1)
            total = total if sinks is None else total + jnp.exp(sinks - top)
            out = jnp.einsum("hm,mhe->he", weights, v[begin : position + 1]) / total[:, None]
            outs = outs.at[b, i].set(out)
            lses = lses.at[b, i].set(top + jnp.log(total))
    return outs, lses
