"""Attention's gradients on Hopper's tensor cores: two passes, and the same numbers every time.

One pass has a line of queries in a block of threads and adds up their gradients over the keys; the
other has a line of keys, transposed, and adds up those of keys and values over the queries of all
heads that read them. Each computes the weights anew from the logarithms of their sums. Nothing is
added up across blocks of threads.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxinf_kernels import hopper
from jaxinf_kernels.attention.gpu_blocks import (
    WIDTH,
    Blocks,
    Finish,
    Lines,
    bring,
    cut,
    flipped,
    lines,
    of,
    of_outputs,
    padded_back,
    steep,
    weights,
)
from jaxinf_kernels.attention.problem import Operands, Problem
from jaxinf_kernels.attention.schedule import Sizes
from jaxinf_kernels.hopper import ACROSS, DOWN, MATRIX, columns_of, rows_of
from jaxinf_kernels.tiles import up

ROWS = hopper.WARPGROUP_ROWS
SUMS = 256
"""Columns of gradients that a warpgroup adds up in its registers."""


def pull(
    spec: Problem, given: Operands, outputs: tuple[Array, Array], cotangents: tuple[Array, Array],
    blocks: Blocks, interpret: Any = False,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Return the cotangents of q, k and v, and the products [B, H, N] of outputs and cotangents.

    Args:
      spec: the problem.
      given: its arrays.
      outputs: out [B, H, N, E] and lse [B, H, N].
      cotangents: of these.
      blocks: sizes.
      interpret: as ``plgpu.kernel`` takes it.
    """
    rest = of_outputs(outputs, cotangents)
    widths = [up(a.shape[3], WIDTH) for a in (given.q, given.v)]
    blocks = blocks.fitting(widths, given.q.dtype.itemsize)
    d_q = _queries(spec, given, rest, blocks, interpret)
    wants = [("v", "k")] if sum(widths) <= SUMS else [("k",), ("v",)]
    found: dict[str, Array] = {}
    for want in wants:
        found |= _keys(spec, given, rest, want, blocks, interpret)
    return d_q, found["k"], found["v"], rest[2]


def _queries(
    spec: Problem, given: Operands, rest: tuple[Array, Array, Array], blocks: Blocks,
    interpret: Any,
) -> Array:  # fmt: skip
    """Return the cotangent of the queries."""
    (_, heads, n, width), (_, groups, m, _) = given.q.shape, given.k.shape
    sizes = cut(n, m, blocks.rows, blocks.back_columns)
    filled, names = padded_back(spec, given, rest, sizes)
    table = lines(spec, given, sizes, by_rows=True)
    workers, stages = sizes.rows // ROWS, blocks.back_stages
    (_, _, height, d), e, dtype = filled[0].shape, up(given.v.shape[3], WIDTH), given.q.dtype
    batch, block = rest[0].shape[0], partial(_block, dtype, sizes.columns)
    d_q = plgpu.kernel(
        partial(_for_queries, spec, sizes, names, heads // groups, bool(interpret)),
        out_type=jax.ShapeDtypeStruct((batch, heads, height, d), dtype),
        grid=(heads, table.ends.shape[1], batch),
        grid_names=("heads", "lines", "batch"),
        num_threads=workers + 1,
        thread_name="wg",
        scratch_types=dict(
            q=block((workers, ROWS, d)),
            o=block((workers, ROWS, e)),
            k=block((stages, sizes.columns, d)),
            v=block((stages, sizes.columns, e)),
            here=plgpu.Barrier(num_arrivals=2, num_barriers=workers),
            k_full=plgpu.Barrier(num_barriers=stages),
            v_full=plgpu.Barrier(num_barriers=stages),
            k_free=plgpu.Barrier(num_arrivals=workers, num_barriers=stages),
            v_free=plgpu.Barrier(num_arrivals=workers, num_barriers=stages),
        ),
        compiler_params=hopper.PARAMS,
        interpret=interpret or None,
    )(*filled, *table)
    return d_q[:, :, :n, :width]


def _block(dtype: Any, streamed: int, shape: tuple[int, ...]) -> Any:
    """Return a block of operands where sums go over so many rows of those that are streamed."""
    return hopper.block(shape, dtype, min(128, streamed * dtype.itemsize))


def _for_queries(
    spec: Problem, sizes: Sizes, names: list[str], shared: int, interpret: bool, *refs: Any,
    q: Any, o: Any, k: Any, v: Any, here: Any, k_full: Any, v_full: Any, k_free: Any, v_free: Any,
) -> None:  # fmt: skip
    """Add up the cotangents of a block of rows."""
    inputs = dict(zip(names, refs, strict=False))
    ends, visits, out_ref = refs[len(names) :]
    head, turn, batch = (lax.axis_index(name) for name in ("heads", "lines", "batch"))
    me, workers, stages = lax.axis_index("wg"), q.shape[0], k.shape[0]
    own = of(ends, batch)
    line, begin, middle, end = (ends[own, turn, x] for x in range(4))

    @pl.when(me < workers)
    def compute() -> None:
        plgpu.set_max_registers(hopper.COMPUTING, action="increase")
        finish = Finish(spec, sizes.m, sizes.columns, inputs, batch, head)
        first = line * sizes.rows + me * ROWS
        part = pl.ds(first, ROWS)
        for name, to in (("q", q), ("d_out", o)):
            rows = inputs[name].at[of(inputs[name], batch), head, part]
            plgpu.copy_gmem_to_smem(rows, to.at[me], here.at[me])
        lse, delta = (
            plgpu.load(inputs[name].at[batch, head, part], layout=DOWN, optimized=False)
            for name in ("lse", "delta")
        )
        total = hopper.filled((ROWS, q.shape[2]), 0.0, MATRIX)
        plgpu.barrier_wait(here.at[me])

        def visit(masked: bool, step: Any, total: Any) -> Any:
            slot = hopper.slot(step - begin, stages)
            plgpu.barrier_wait(k_full.at[slot])
            keys, values = k.at[slot], v.at[slot]
            s = hopper.product(q.at[me], keys.transpose((1, 0)), interpret=interpret)
            scores = finish(s, (first, visits[own, step] * sizes.columns), masked)
            p = weights(scores, rows_of(lse, s.shape))
            plgpu.barrier_wait(v_full.at[slot])
            d_p = hopper.product(o.at[me], values.transpose((1, 0)), interpret=interpret)
            plgpu.barrier_arrive(v_free.at[slot])
            d_s = steep(scores, p, d_p, rows_of(delta, s.shape)).astype(k.dtype)
            (total,) = hopper.added((total, d_s, keys), interpret=interpret)
            plgpu.barrier_arrive(k_free.at[slot])
            return total

        total = lax.fori_loop(begin, middle, partial(visit, False), total)
        if finish.mixes:
            total = lax.fori_loop(middle, end, partial(visit, True), total)
        q[me] = (total * spec.scale).astype(q.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q.at[me], out_ref.at[batch, head, part])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(me == workers)
    def streamed() -> None:
        group = lax.div(head, jnp.asarray(shared, head.dtype))
        rings = ("k", k, k_full, k_free), ("v", v, v_full, v_free)
        bring(inputs, rings, (batch, group), visits.at[own], begin, end)


def _keys(
    spec: Problem, given: Operands, rest: tuple[Array, Array, Array], want: tuple[str, ...],
    blocks: Blocks, interpret: Any,
) -> dict[str, Array]:  # fmt: skip
    """Return the cotangents of keys, of values or of both."""
    (_, heads, n, _), (_, groups, m, _) = given.q.shape, given.k.shape
    sizes = cut(m, n, blocks.rows, blocks.back_columns)
    sizes = Sizes(n, m, sizes.columns, sizes.rows)
    arrays, names = padded_back(spec, given, rest, sizes)
    filled = flipped(arrays, names, spec)
    table: Lines = lines(spec, given, sizes, by_rows=False)
    workers, stages = sizes.columns // ROWS, blocks.back_stages
    (_, _, width, d), e, dtype = filled[1].shape, filled[2].shape[3], given.k.dtype
    batch, wide, block = rest[0].shape[0], {"k": d, "v": e}, partial(_block, dtype, sizes.rows)
    out = plgpu.kernel(
        partial(_for_keys, spec, sizes, names, want, heads // groups, bool(interpret)),
        out_type=[jax.ShapeDtypeStruct((batch, groups, width, wide[x]), dtype) for x in want],
        grid=(groups, table.ends.shape[1], batch),
        grid_names=("groups", "lines", "batch"),
        num_threads=workers + 1,
        thread_name="wg",
        scratch_types=dict(
            k=block((workers, ROWS, d)),
            v=block((workers, ROWS, e)),
            q=block((stages, sizes.rows, d)),
            o=block((stages, sizes.rows, e)),
            lse=plgpu.SMEM((stages, sizes.rows), jnp.float32),
            delta=plgpu.SMEM((stages, sizes.rows), jnp.float32),
            here=plgpu.Barrier(num_arrivals=2, num_barriers=workers),
            q_full=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            o_full=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            q_free=plgpu.Barrier(num_arrivals=workers, num_barriers=stages),
            o_free=plgpu.Barrier(num_arrivals=workers, num_barriers=stages),
        ),
        compiler_params=hopper.PARAMS,
        interpret=interpret or None,
    )(*filled, *table)
    kept = {"k": given.k.shape[3], "v": given.v.shape[3]}
    return {x: a[:, :, :m, : kept[x]] for x, a in zip(want, out, strict=True)}


def _for_keys(
    spec: Problem, sizes: Sizes, names: list[str], want: tuple[str, ...], shared: int,
    interpret: bool, *refs: Any, k: Any, v: Any, q: Any, o: Any, lse: Any, delta: Any, here: Any,
    q_full: Any, o_full: Any, q_free: Any, o_free: Any,
) -> None:  # fmt: skip
    """Add up the cotangents of a block of columns, which are down, over all rows and heads."""
    inputs = dict(zip(names, refs, strict=False))
    ends, visits, *outs = refs[len(names) :]
    group, turn, batch = (lax.axis_index(name) for name in ("groups", "lines", "batch"))
    me, workers, stages = lax.axis_index("wg"), k.shape[0], q.shape[0]
    own = of(ends, batch)
    line, begin, middle, end = (ends[own, turn, x] for x in range(4))

    @pl.when(me < workers)
    def compute() -> None:
        plgpu.set_max_registers(hopper.COMPUTING, action="increase")
        first = line * sizes.columns + me * ROWS
        part = pl.ds(first, ROWS)
        for name, to in (("k", k), ("v", v)):
            rows = inputs[name].at[of(inputs[name], batch), group, part]
            plgpu.copy_gmem_to_smem(rows, to.at[me], here.at[me])
        wide = {"k": k.shape[2], "v": v.shape[2]}
        totals = tuple(hopper.filled((ROWS, wide[x]), 0.0, MATRIX) for x in want)
        plgpu.barrier_wait(here.at[me])

        def visit(masked: bool, member: Any, step: Any, totals: Any) -> Any:
            finish = Finish(
                spec, sizes.m, sizes.columns, inputs, batch, group * shared + member, down=1
            )
            before = dict(zip(want, totals, strict=True))
            slot = hopper.slot(member * (end - begin) + step - begin, stages)
            queries, d_out = q.at[slot], o.at[slot]
            plgpu.barrier_wait(q_full.at[slot])
            plgpu.barrier_wait(o_full.at[slot])
            pairs = [(k.at[me], queries.transpose((1, 0)))]
            if "k" in want:
                pairs.append((v.at[me], d_out.transpose((1, 0))))
            s, *rest = hopper.products(*pairs, interpret=interpret)
            scores = finish(s, (visits[own, step] * sizes.rows, first), masked)
            top = plgpu.load(lse.at[slot], layout=ACROSS)
            p = weights(scores, columns_of(top, s.shape))
            terms = {}
            if "v" in want:
                terms["v"] = before["v"], p.astype(o.dtype), d_out
            if "k" in want:
                low = columns_of(plgpu.load(delta.at[slot], layout=ACROSS), s.shape)
                d_s = steep(scores, p, rest[0], low).astype(q.dtype)
                terms["k"] = before["k"], d_s, queries
            plgpu.commit_smem()  # what was loaded may be overwritten by TMA
            totals = hopper.added(*(terms[x] for x in want), interpret=interpret)
            plgpu.barrier_arrive(q_free.at[slot])
            plgpu.barrier_arrive(o_free.at[slot])
            return totals

        mixes = Finish(spec, sizes.m, sizes.columns, inputs, batch, 0).mixes

        def one(member: Any, totals: Any) -> Any:
            totals = lax.fori_loop(begin, middle, partial(visit, False, member), totals)
            if mixes:
                totals = lax.fori_loop(middle, end, partial(visit, True, member), totals)
            return totals

        totals = lax.fori_loop(0, shared, one, totals)
        for x, total in zip(want, totals, strict=True):
            to = (k if x == "k" else v).at[me]
            factor = spec.scale if x == "k" else 1.0
            to[...] = (total * factor).astype(to.dtype)
        plgpu.commit_smem()
        for x, out_ref in zip(want, outs, strict=True):
            source = (k if x == "k" else v).at[me]
            plgpu.copy_smem_to_gmem(source, out_ref.at[batch, group, part])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(me == workers)
    def streamed() -> None:
        rings = (
            ("q", q, q_full, q_free, ("lse", lse)),
            ("d_out", o, o_full, o_free, ("delta", delta)),
        )
        bring(inputs, rings, (batch, group * shared), visits.at[own], begin, end, shared)
