"""Attention to a paged cache, for networks that generate."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinf_kernels.decode_attention import gpu, ragged, tpu, xla
from jaxinf_kernels.decode_attention.blocks import Blocks, blocks_for
from jaxinf_kernels.decode_attention.cache import Cache
from jaxinf_kernels.decode_attention.problem import Operands, Problem
from jaxinf_kernels.operation import Kernel, Kernels, asked, operation

_decode_attention = operation(
    "decode_attention",
    Kernels(xla.attend, tpu=Kernel(tpu.attend), cuda=Kernel(gpu.attend, gpu.refusal)),
)


def decode_attention(
    q: Float[Array, "*queries heads d"],
    cache: Cache,
    page_table: Int[Array, "_ max_pages"],
    lengths: Int[Array, " sequences"],
    *,
    query_lengths: Int[Array, " _"] | None = None,
    offsets: Int[Array, " _"] | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    alibi: Float[Array, " _"] | None = None,
    sinks: Float[Array, " _"] | None = None,
    window: int | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    chip: str | None = None,
    blocks: Blocks | None = None,
) -> Float[Array, "*queries heads e"] | tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Attention of the newest queries of each sequence to a paged cache of keys and values.

    .. math:: o_i = \frac{\sum_{j \le i} e^{a_{ij}} v_j}{e^{c} + \sum_{j \le i} e^{a_{ij}}}, \qquad
              a_{ij} = t \tanh(s\, q_i \cdot k_j / t) - \beta (i - j)

    of which slope :math:`\beta`, sink c and cap t are optional. The queries of a sequence are its
    last tokens, whose keys and values are in the cache already: the last query sees all of the
    sequence, the one before it all but the last token, and so on.

    Keys and values are widened to the queries' dtype, exactly; scales of tokens multiply logits and
    weights, those of channels the queries. Products are accumulated, and the softmax is taken, in
    float32; weights are rounded to the queries' dtype before values are summed.

    To a cache in full precision it differentiates as its plain form does. A cache in few bits has
    no derivative: use :func:`jaxinf_kernels.attention.attention` on keys and values themselves.

    Args:
      q: queries, bfloat16 or float32: [sequences, heads, d], one for each sequence;
        [sequences, queries, heads, d], of which ``query_lengths`` count; or, with ``offsets``,
        [tokens, heads, d]. A batch of all of this goes through ``jax.vmap``.
      cache: its groups divide ``heads``, and head h reads group ``h // (heads // groups)``; in full
        precision it has the queries' dtype.
      page_table: [sequences, max_pages], numbers of each sequence's pages, in order; behind its
        length anything.
      lengths: [sequences], how many tokens each sequence has with its queries; of length 0 outputs
        are 0.
      query_lengths: [sequences], how many of each sequence's queries count, from the first; outputs
        of the others are 0.
      offsets: [sequences + 1], where in ``q`` each sequence's queries begin, and the last ones end.
      scale: of the products; :math:`1 / \sqrt d` by default.
      soft_cap: bound of the logits before slopes.
      alibi: [heads], slopes by which logits fall with the distance of positions.
      sinks: [heads], a logit for each head that takes its share of the softmax, and has no value.
      window: how many tokens a query sees, itself the last; pages before it are not fetched.
      return_lse: also return the logarithm of the denominator, by which parts of a cache are
        merged; where nothing is seen it is the sink, or minus infinity.
      implementation: ``"xla"``, ``"tpu"`` or ``"gpu"``; by default what fits the platform.
      chip: ``"v5e"`` say, for block sizes where no mesh tells which chip is compiled for.
      blocks: sizes of blocks; by default a table's.

    Returns:
      One output for each query, in the queries' dtype.

    Raises:
      TypeError: when dtypes differ, or at a derivative with a cache in few bits.
      ValueError: when the shapes do not belong together.

    Reference:
      W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with
      PagedAttention", SOSP 2023; Z. Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization
      for KV Cache", ICML 2024.
    """
    _check(q, cache, page_table, lengths, query_lengths, offsets)
    _check_options(q, alibi, sinks, soft_cap, window)
    if cache.form is not None:
        q, cache, alibi, sinks = _without_derivative(q, cache, alibi, sinks)
    how = asked(implementation, chip, blocks)
    heads, groups, d = q.shape[-2], cache.groups, q.shape[-1]
    way, size = _plan(q, lengths, query_lengths, offsets, heads // groups, blocks or
                      blocks_for(how.known))  # fmt: skip
    problem = Problem(
        jax.tree.structure(cache),
        size,
        (alibi is not None, sinks is not None),
        d**-0.5 if scale is None else float(scale),
        soft_cap,
        window,
        how,
    )
    found = ragged.gathered(q.reshape(-1, heads, d), way, groups)
    operands = Operands(
        found[None], way.sequence[None], way.first[None], way.end[None], page_table[None],
        None if alibi is None else alibi.reshape(1, groups, -1),
        None if sinks is None else sinks.reshape(1, groups, -1),
        jax.tree.map(lambda a: a[None], cache),
    )  # fmt: skip
    out, lse = _decode_attention(*problem.flat(operands), spec=problem)
    out = ragged.scattered(out[0], way, size, 0).reshape(*q.shape[:-1], -1)
    if not return_lse:
        return out
    return out, ragged.scattered(lse[0], way, size, -jnp.inf).reshape(q.shape[:-1])


def _plan(
    q: Array, lengths: Array, query_lengths: Any, offsets: Any, repeats: int, blocks: Blocks
) -> tuple[ragged.Plan, int]:
    """Cut the queries into blocks; return also how many are in one."""
    sequences = len(lengths)
    if offsets is not None:
        tokens = most = q.shape[0]
        starts, counts = offsets[:-1], jnp.diff(offsets)
    else:
        most = 1 if q.ndim == 3 else q.shape[1]
        tokens = sequences * most
        starts = jnp.arange(sequences, dtype=jnp.int32) * most
        counts = jnp.full(sequences, most) if query_lengths is None else query_lengths
    size = max(1, min(most, blocks.rows // repeats))
    number = tokens // size + sequences if offsets is not None else sequences * -(-most // size)
    starts, counts, lengths = (a.astype(jnp.int32) for a in (starts, counts, lengths))
    return ragged.plan(starts, counts, lengths, tokens, size, number), size


@jax.custom_jvp
def _without_derivative(*operands: Any) -> Any:
    return operands


@_without_derivative.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "decode_attention has no derivative with a cache in few bits: use "
        "jaxinf_kernels.attention.attention on the keys and values themselves, or a cache in full "
        "precision."
    )


def _check(
    q: Array, cache: Cache, page_table: Array, lengths: Array, query_lengths: Any, offsets: Any
) -> None:
    """Raise unless these belong together."""
    keys, sequences = cache.keys, len(lengths)
    if cache.form is None and not q.dtype == keys.elements.dtype == cache.values.elements.dtype:
        raise TypeError(
            f"queries and a cache in full precision must have one dtype, got {q.dtype}, "
            f"{keys.elements.dtype} and {cache.values.elements.dtype}. Cast q with astype."
        )
    heads, d = q.shape[-2:]
    if d != keys.width or heads % cache.groups:
        raise ValueError(
            f"a cache of {cache.groups} groups and keys of {keys.width} numbers takes queries of "
            f"as many numbers, and a multiple of its groups as heads, got q of shape {q.shape}."
        )
    if query_lengths is not None and offsets is not None:
        raise ValueError("give query_lengths for q [sequences, queries, heads, d], or offsets.")
    if offsets is not None:
        fits = q.ndim == 3
    elif query_lengths is not None:
        fits = q.ndim == 4 and q.shape[0] == sequences
    else:
        fits = q.ndim in (3, 4) and q.shape[0] == sequences
    if not fits:
        raise ValueError(
            f"q must be [{sequences}, heads, d], [{sequences}, queries, heads, d] with "
            f"query_lengths, or [tokens, heads, d] with offsets, got {q.shape}. "
            "Use jax.vmap for a batch."
        )
    if page_table.shape[0] != sequences:
        raise ValueError(
            f"page_table must have a row for each of {sequences} lengths, got {page_table.shape}."
        )


def _check_options(q: Array, alibi: Any, sinks: Any, soft_cap: Any, window: Any) -> None:
    """Raise unless options are sound."""
    for name, array in (("alibi", alibi), ("sinks", sinks)):
        if array is not None and array.shape != q.shape[-2:-1]:
            raise ValueError(
                f"{name} must have one number for each of {q.shape[-2]} heads, got {array.shape}."
            )
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap must be positive, got {soft_cap}: leave it out for none.")
    if window is not None and window < 1:
        raise ValueError(f"window must hold a token at least, got {window}: leave it out for none.")
