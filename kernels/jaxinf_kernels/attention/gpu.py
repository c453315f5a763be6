"""Attention on Hopper's tensor cores.

A block of threads has one block of rows. A warpgroup brings keys and values by TMA, the others have
64 rows each: products by wgmma, weights from registers. Of two computing warpgroups one multiplies
while the other takes exponentials: they change places at a barrier.
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
    LOG2E,
    LOWEST,
    WIDTH,
    Blocks,
    Finish,
    bring,
    cut,
    lines,
    of,
    padded,
)
from jaxinf_kernels.attention.problem import Problem
from jaxinf_kernels.attention.schedule import Sizes
from jaxinf_kernels.hopper import DOWN, MATRIX, rows_of
from jaxinf_kernels.tiles import up

ROWS = hopper.WARPGROUP_ROWS


def attend(
    *arrays: Array, spec: Problem, blocks: Blocks, interpret: Any = False
) -> tuple[Array, Array]:
    """Return outputs [B, H, N, E] and the logarithms of the softmax's sums [B, H, N]."""
    given = spec.operands(arrays)
    (_, heads, n, _), (_, groups, m, e) = given.q.shape, given.v.shape
    batch, dtype = max(a.shape[0] for a in arrays), given.v.dtype
    widths = [up(a.shape[3], WIDTH) for a in (given.q, given.v)]
    blocks = blocks.fitting(widths, dtype.itemsize)
    sizes = cut(n, m, blocks.rows, blocks.columns)
    filled, names = padded(spec, given, sizes.rows, sizes.columns)
    table = lines(spec, given, sizes, by_rows=True)
    workers = sizes.rows // ROWS
    height, stages = filled[0].shape[2], blocks.stages
    result = workers, ROWS, widths[1]
    scratch: dict[str, Any] = dict(
        q=hopper.block((workers, ROWS, widths[0]), dtype),
        k=hopper.block((stages, sizes.columns, widths[0]), dtype),
        v=hopper.block((stages, sizes.columns, widths[1]), dtype),
        result=None if widths[0] == widths[1] else hopper.block(result, dtype),
        sums=plgpu.SMEM((workers, ROWS), jnp.float32),
        here=plgpu.Barrier(num_barriers=workers),
        k_full=plgpu.Barrier(num_barriers=stages),
        v_full=plgpu.Barrier(num_barriers=stages),
        k_free=plgpu.Barrier(num_arrivals=workers, num_barriers=stages),
        v_free=plgpu.Barrier(num_arrivals=workers, num_barriers=stages),
        places=plgpu.Barrier(num_arrivals=2) if workers == 2 else None,
    )
    out, lse = plgpu.kernel(
        partial(_kernel, spec, sizes, names, heads // groups, stages, bool(interpret)),
        out_type=(
            jax.ShapeDtypeStruct((batch, heads, height, widths[1]), dtype),
            jax.ShapeDtypeStruct((batch, heads, height), jnp.float32),
        ),
        grid=(heads, table.ends.shape[1], batch),
        grid_names=("heads", "lines", "batch"),
        num_threads=workers + 1,
        thread_name="wg",
        scratch_types=scratch,
        compiler_params=hopper.PARAMS,
        interpret=interpret or None,
    )(*filled, *table)
    return out[:, :, :n, :e], lse[:, :, :n]


def _kernel(
    spec: Problem, sizes: Sizes, names: list[str], shared: int, stages: int, interpret: bool,
    *refs: Any, q: Any, k: Any, v: Any, result: Any, sums: Any, here: Any, k_full: Any,
    v_full: Any, k_free: Any, v_free: Any, places: Any,
) -> None:  # fmt: skip
    """Attend from a block of rows."""
    inputs = dict(zip(names, refs, strict=False))
    ends, visits, out_ref, lse_ref = refs[len(names) :]
    head, turn, batch = (lax.axis_index(name) for name in ("heads", "lines", "batch"))
    me = lax.axis_index("wg")
    workers = q.shape[0]
    own = of(ends, batch)
    line, begin, middle, end = (ends[own, turn, x] for x in range(4))

    def place_of(step: Any) -> Any:
        """Return the first column of a visit."""
        return visits[own, step] * sizes.columns

    @pl.when(me < workers)
    def compute() -> None:
        plgpu.set_max_registers(hopper.COMPUTING, action="increase")
        finish = Finish(spec, sizes.m, sizes.columns, inputs, batch, head)
        first = line * sizes.rows + me * ROWS
        mine = q.at[me]
        part = pl.ds(first, ROWS)
        rows = inputs["q"].at[of(inputs["q"], batch), head, part]
        plgpu.copy_gmem_to_smem(rows, mine, here.at[me])
        top, total = (hopper.filled((ROWS,), x, DOWN) for x in (LOWEST, 0.0))
        if "sinks" in inputs:
            sink = inputs["sinks"][of(inputs["sinks"], batch), head] * LOG2E
            top, total = plgpu.layout_cast(jnp.broadcast_to(sink, (ROWS,)), DOWN), total + 1.0
        mean = hopper.filled((ROWS, v.shape[2]), 0.0, MATRIX)
        plgpu.barrier_wait(here.at[me])

        def change() -> None:
            if places is not None:
                plgpu.barrier_arrive(places)
                plgpu.barrier_wait(places)

        def visit(masked: bool, step: Any, carry: Any) -> Any:
            top, total, mean = carry
            slot = hopper.slot(step - begin, stages)
            plgpu.barrier_wait(k_full.at[slot])
            keys = k.at[slot].transpose((1, 0))
            s = hopper.product(mine, keys, interpret=interpret, during=change)
            plgpu.barrier_arrive(k_free.at[slot])
            found = finish(s, (first, place_of(step)), masked)
            new = jnp.maximum(top, jnp.max(found.s, axis=1) * found.factor)
            p = jnp.exp2(found.s * found.factor - rows_of(new, s.shape)).astype(v.dtype)
            fall = jnp.exp2(top - new)
            total = total * fall + jnp.sum(p.astype(jnp.float32), axis=1)
            mean = mean * rows_of(fall, mean.shape)
            if places is not None:
                plgpu.barrier_arrive(places)
            plgpu.barrier_wait(v_full.at[slot])
            if places is not None:
                plgpu.barrier_wait(places)
            (mean,) = hopper.added((mean, p, v.at[slot]), interpret=interpret)
            plgpu.barrier_arrive(v_free.at[slot])
            return new, total, mean

        pl.when(me == 1)(change)
        carry = lax.fori_loop(begin, middle, partial(visit, False), (top, total, mean))
        if finish.mixes:
            carry = lax.fori_loop(middle, end, partial(visit, True), carry)
        top, total, mean = carry
        pl.when(me == 0)(change)
        there = total > 0
        safe = jnp.where(there, total, 1.0)
        share = jnp.where(there, 1 / safe, 0.0)
        to = mine if result is None else result.at[me]
        to[...] = (mean * rows_of(share, mean.shape)).astype(out_ref.dtype)
        sums[me] = jnp.where(there, top / LOG2E + jnp.log(safe), -jnp.inf)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(to, out_ref.at[batch, head, part])
        plgpu.copy_smem_to_gmem(sums.at[me], lse_ref.at[batch, head, part])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(me == workers)
    def streamed() -> None:
        group = lax.div(head, jnp.asarray(shared, head.dtype))
        rings = ("k", k, k_full, k_free), ("v", v, v_full, v_free)
        bring(inputs, rings, (batch, group), visits.at[own], begin, end)
