"""Attention's gradients on a TPU's matrix units, in one pass.

A grid step is one visit of a block of queries by a block of keys, column by column: five products,
as the queries' gradients of a head stay in the core's memory until all columns have been. Blocks
are held with keys down and queries across, so that what belongs to a query lies in a lane, and
three of the five products need no transposition.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxinf_kernels.attention.blocks import Blocks
from jaxinf_kernels.attention.cotangents import delta_of
from jaxinf_kernels.attention.masks import COLUMN, FULL, MIXED, SCALAR
from jaxinf_kernels.attention.problem import Operands, Problem, score, slope_of
from jaxinf_kernels.attention.schedule import (
    FIRST,
    LAST,
    Schedule,
    Sizes,
    at_run_time,
    edged,
    schedule,
)
from jaxinf_kernels.attention.tpu import LOG2E, LOWEST
from jaxinf_kernels.attention.tpu_blocks import Visits, lanes, padded
from jaxinf_kernels.tiles import LANES, filled_up, precise, up

RESIDENT = 8 * 2**20
"""Bytes of the queries' gradients of a head that stay in the core's memory; longer sequences are
cut into stretches of rows."""


def pull(
    spec: Problem, given: Operands, outputs: tuple[Array, Array], cotangents: tuple[Array, Array],
    with_bias: bool, blocks: Blocks, interpret: Any = False,
) -> tuple[Array, Array, Array, Array | None]:  # fmt: skip
    """Return the cotangents of q, k, v and, where asked for, of the logits before the bias.

    Args:
      spec: the problem.
      given: its arrays.
      outputs: out [B, H, N, E] and lse [B, H, N].
      cotangents: of these.
      with_bias: whether logits' cotangents [B, H, N, M] are wanted.
      blocks: sizes.
      interpret: as ``pl.pallas_call`` takes it.
    """
    n, d = given.q.shape[2:]
    lse, d_out = outputs[1], cotangents[0]
    delta = delta_of(outputs, cotangents)
    lse = jnp.where(jnp.isfinite(lse), lse, -LOWEST)  # nothing seen: all weights are zero
    stretch = max(blocks.rows, RESIDENT // (4 * max(d, LANES)) // blocks.rows * blocks.rows)
    # what is added to others' is not rounded before
    alone = given.k.shape[:2] == d_out.shape[:2] and n <= stretch
    kept = given.k.dtype if alone else jnp.float32
    parts: list[tuple[Any, ...]] = []
    for begin in range(0, n, stretch):
        rows = slice(begin, min(n, begin + stretch))
        parts.append(
            _stretch(
                spec, _rows_of(spec, given, rows), begin, d_out[:, :, rows], lse[:, :, rows],
                delta[:, :, rows], with_bias, kept, blocks, interpret,
            )
        )  # fmt: skip
    d_q = jnp.concatenate([part[0] for part in parts], axis=2)
    d_k, d_v = (sum(part[x] for part in parts) for x in (1, 2))
    shared = given.q.shape[1] // given.k.shape[1]

    def of_groups(a: Any, like: Array) -> Array:
        whole = a.reshape(a.shape[0], like.shape[1], shared, *a.shape[2:]).sum(axis=2)
        return whole.astype(like.dtype)

    d_s = jnp.concatenate([part[3] for part in parts], axis=2) if with_bias else None
    return d_q, of_groups(d_k, given.k), of_groups(d_v, given.v), d_s


def _rows_of(spec: Problem, given: Operands, rows: slice) -> Operands:
    """Return a stretch of queries with all keys."""
    leaves = tuple(
        a[:, rows] if kind not in (COLUMN, SCALAR) else a
        for a, kind in zip(given.leaves, spec.kinds, strict=True)
    )
    bias = None if given.bias is None else given.bias[:, :, rows]
    return given._replace(q=given.q[:, :, rows], bias=bias, leaves=leaves)


def _stretch(
    spec: Problem, given: Operands, first: int, d_out: Array, lse: Array, delta: Array,
    with_bias: bool, kept: Any, blocks: Blocks, interpret: Any,
) -> tuple[Array, Array, Array, Array | None]:  # fmt: skip
    """Return a stretch of queries' cotangents, and what they add to those of all keys."""
    q, v = given.q, given.v
    (batch, heads, n, d), (_, groups, m, e) = q.shape, v.shape
    batch = max(a.shape[0] for a in (*spec.flat(given), d_out))
    sizes = Sizes(n, m, min(blocks.rows, up(n, LANES)), min(blocks.columns, up(m, LANES)), first)
    rows, columns = sizes.rows, sizes.columns
    plan = schedule(spec, sizes, by_rows=False, every=with_bias)
    kinds = at_run_time(spec, given.leaves, plan, sizes)
    visits = Visits(spec, given, rows, columns, heads // groups, flipped=True)
    in_specs, args = visits.inputs(padded(spec, given, rows, columns))
    d_out, lse, delta = (filled_up(a, {2: rows}) for a in (d_out, lse, delta))
    lse = jnp.where(jnp.arange(lse.shape[2]) < n, lse, -LOWEST) * LOG2E
    heights, widths = up(n, rows), up(m, columns)
    d_s = [visits.cell(jnp.empty((batch, heads, 1, 1)))] if with_bias else []
    d_s_shape = [jax.ShapeDtypeStruct((batch, heads, widths, heights), jnp.float32)] * with_bias
    out = pl.pallas_call(
        partial(_kernel, spec, partial(edged, spec, m, columns), visits.names, sizes, with_bias),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, heads, len(plan.kinds)),
            in_specs=[*in_specs, visits.row(e), visits.row_of_numbers(), visits.row_of_numbers()],
            out_specs=[
                pl.BlockSpec((1, 1, heights, d), lambda b, h, t, i, j, c: (b, h, 0, 0)),
                visits.column(d), visits.column(e), *d_s,
            ],
            scratch_shapes=[
                pltpu.VMEM((heights, d), jnp.float32),
                pltpu.VMEM((columns, d), jnp.float32),
                pltpu.VMEM((columns, e), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, heights, d), q.dtype),
            jax.ShapeDtypeStruct((batch, heads, widths, d), kept),
            jax.ShapeDtypeStruct((batch, heads, widths, e), kept),
            *d_s_shape,
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=64 * 2**20,
        ),
        cost_estimate=_cost(plan, sizes, batch * heads, d, e, q.dtype.itemsize),
        interpret=interpret,
        name="attention_vjp",
    )(
        jnp.asarray(plan.rows), jnp.asarray(plan.columns), kinds, *args,
        d_out, lse[:, :, None], delta[:, :, None],
    )  # fmt: skip
    d_bias = out[3].swapaxes(2, 3)[:, :, :n, :m] if with_bias else None
    return out[0][:, :, :n], out[1][:, :, :m], out[2][:, :, :m], d_bias


def _cost(plan: Schedule, sizes: Sizes, heads: int, d: int, e: int, width: int) -> pl.CostEstimate:
    """Return what the visits compute and move."""
    cells = heads * int(((plan.kinds & 3) > 0).sum()) * sizes.rows * sizes.columns
    return pl.CostEstimate(
        flops=2 * cells * (3 * d + 2 * e),
        transcendentals=cells,
        bytes_accessed=heads * (2 * sizes.n * (d + e) + sizes.m * (d + e)) * width
        + 4 * heads * sizes.m * (d + e),
    )


def _kernel(
    spec: Problem, edge: Any, names: list[str], sizes: Sizes, with_bias: bool, rows: Any,
    columns: Any, kinds: Any, *refs: Any,
) -> None:  # fmt: skip
    """Visit a block of queries by a block of keys."""
    inputs = dict(zip(names, refs, strict=False))
    d_out_ref, lse_ref, delta_ref, dq_ref, dk_ref, dv_ref, *rest = refs[len(names) :]
    ds_ref = rest.pop(0) if with_bias else None
    dq_sum, dk_sum, dv_sum = rest
    step, last = pl.program_id(2), pl.num_programs(2) - 1
    kind = kinds[pl.program_id(0) if kinds.shape[0] > 1 else 0, step]
    place = columns[step] * sizes.columns, sizes.first + rows[step] * sizes.rows

    @pl.when(step == 0)
    def start() -> None:
        dq_sum[...] = jnp.zeros_like(dq_sum)

    @pl.when((kind & FIRST) != 0)
    def open_column() -> None:
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    def visit(masked: bool) -> None:
        q, k, v, d_out = inputs["q"][0, 0], inputs["k"][0, 0], inputs["v"][0, 0], d_out_ref[0, 0]
        product = partial(
            jax.lax.dot_general, precision=precise(q.dtype), preferred_element_type=jnp.float32
        )
        across, plain, both_down = (((1,), (1,)), ((1,), (0,)), ((0,), (0,)))
        scaled = product(k, q, (across, ((), ()))) * spec.scale
        s = _logits(spec, edge, inputs, place, scaled, masked)
        p = jnp.exp2(s - lse_ref[0, 0])
        dv_sum[...] += product(p.astype(d_out.dtype), d_out, (plain, ((), ())))
        d_s = p * (product(v, d_out, (across, ((), ()))) - delta_ref[0, 0])
        if ds_ref is not None:
            ds_ref[0, 0] = d_s
        d_s = (slope_of(spec, d_s, scaled) * spec.scale).astype(q.dtype)
        dk_sum[...] += product(d_s, q, (plain, ((), ())))
        own = pl.ds(pl.multiple_of(rows[step] * sizes.rows, sizes.rows), sizes.rows)
        dq_sum[own, :] += product(d_s, k, (both_down, ((), ())))

    pl.when((kind & 3) == FULL)(partial(visit, False))
    if edge(None) is not None:
        pl.when((kind & 3) == MIXED)(partial(visit, True))
    if ds_ref is not None:

        @pl.when((kind & 3) == 0)
        def nothing() -> None:
            ds_ref[0, 0] = jnp.zeros(ds_ref.shape[2:], ds_ref.dtype)

    @pl.when((kind & LAST) != 0)
    def close_column() -> None:
        dk_ref[0, 0] = dk_sum[...].astype(dk_ref.dtype)
        dv_ref[0, 0] = dv_sum[...].astype(dv_ref.dtype)

    @pl.when(step == last)
    def end() -> None:
        dq_ref[0, 0] = dq_sum[...].astype(dq_ref.dtype)


def _logits(
    spec: Problem, edge: Any, refs: dict[str, Any], place: Any, scaled: Array, masked: bool
) -> Array:
    """Return logits in units of log 2, keys down; ``place`` is (first key, first query)."""
    j = place[0] + jax.lax.broadcasted_iota(jnp.int32, scaled.shape, 0)
    i = place[1] + jax.lax.broadcasted_iota(jnp.int32, scaled.shape, 1)
    bias = refs["bias"][0, 0].astype(jnp.float32) if "bias" in refs else None
    slope = refs["slopes"][0, 0, :, :1] if "slopes" in refs else None
    s = score(spec, scaled, bias, slope, i, j) * LOG2E
    if not masked:
        return s
    shown = []
    for number, kind in enumerate(spec.kinds):
        ref = refs[f"mask {number}"]
        if kind == COLUMN:
            shown.append(lanes(ref[0, 0], s.shape[1]))
        elif kind == SCALAR:
            shown.append(ref[0, 0, :, :1])
        else:
            shown.append(ref[0, 0])
    mask = edge(shown)
    return s if mask is None else jnp.where(mask.sees(i, j), s, LOWEST)
