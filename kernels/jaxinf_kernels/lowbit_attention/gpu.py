"""Low-bit attention on Hopper's tensor cores.

The kernel is attention's, with products of few bits: the same visits in the same order. A row's
factor stays in registers, a column's comes with the keys. Hopper multiplies numbers of 8 bits only
where what is summed over is contiguous in both: so values come transposed, and weights in FP8 go
through shared memory, because the layout that products leave them in is not the one they are taken
in. Sums of FP8 products have 14 bits on Hopper: each visit's are added up in float32.
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
    RESERVED,
    WIDTH,
    Finish,
    cut,
    lines,
    of,
)
from jaxinf_kernels.attention.schedule import Sizes
from jaxinf_kernels.hopper import ACROSS, DOWN, MATRIX, columns_of, rows_of
from jaxinf_kernels.lowbit_attention import xla
from jaxinf_kernels.lowbit_attention.gpu_blocks import begun, bring, ceil, inputs_of, of_block
from jaxinf_kernels.lowbit_attention.precision import Precision
from jaxinf_kernels.lowbit_attention.prepare import prepare
from jaxinf_kernels.lowbit_attention.problem import LowBit
from jaxinf_kernels.tiles import up

ROWS = hopper.WARPGROUP_ROWS
PART = 128
"""Columns of an output that have a visit's sum at a time; half as many where outputs are wider."""
WHOLE, COLUMNS, STAGES = 128, 128, 4
"""Rows of a block, columns of a visit (half as many where heads are wide), and visits that are on
their way or in use at most."""


def attend(*arrays: Array, spec: LowBit, interpret: Any = False) -> tuple[Array, Array]:
    """Return outputs [B, H, N, E] and the logarithms of the softmax's sums [B, H, N]."""
    problem, precision = spec.asked, spec.precision
    given = problem.operands(arrays)
    (_, heads, n, d), (_, groups, m, e) = given.q.shape, given.v.shape
    batch, dtype = max(a.shape[0] for a in arrays), given.v.dtype
    ready = prepare(precision, *given[:3])
    d, e = up(d, WIDTH), up(e, WIDTH)
    sizes = cut(n, m, WHOLE, COLUMNS if max(d, e) <= 128 else COLUMNS // 2)
    filled, names = inputs_of(spec, given, ready, sizes)
    table = lines(problem, given, sizes, by_rows=True)
    workers, height = sizes.rows // ROWS, filled[0].shape[2]
    kinds = filled[0].dtype, filled[2].dtype
    stages = _stages(precision, sizes, d, e)
    shape = (stages, e, sizes.columns) if precision.pv else (stages, sizes.columns, e)
    held = (workers, ROWS, sizes.columns) if precision.pv else None
    scratch: dict[str, Any] = dict(
        q=hopper.block((workers, ROWS, d), kinds[0]),
        k=hopper.block((stages, sizes.columns, d), kinds[0]),
        v=hopper.block(shape, kinds[1]),
        scales=plgpu.SMEM((stages, sizes.columns), jnp.float32),
        weights=None if held is None else hopper.block(held, kinds[1]),
        result=hopper.block((workers, ROWS, e), dtype),
        sums=plgpu.SMEM((workers, ROWS), jnp.float32),
        here=plgpu.Barrier(num_barriers=workers),
        k_full=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        v_full=plgpu.Barrier(num_barriers=stages),
        k_free=plgpu.Barrier(num_arrivals=workers, num_barriers=stages),
        v_free=plgpu.Barrier(num_arrivals=workers, num_barriers=stages),
        places=plgpu.Barrier(num_arrivals=2) if workers == 2 else None,
    )
    out, lse = plgpu.kernel(
        partial(_kernel, spec, sizes, names, heads // groups, bool(interpret)),
        out_type=(
            jax.ShapeDtypeStruct((batch, heads, height, e), dtype),
            jax.ShapeDtypeStruct((batch, heads, height), jnp.float32),
        ),
        grid=(heads, table.ends.shape[1], batch),
        grid_names=("heads", "lines", "batch"),
        num_threads=workers + 1,
        thread_name="wg",
        scratch_types=scratch,
        compiler_params=hopper.PARAMS,
        interpret=interpret or None,
        kernel_name="lowbit_attention",
    )(*filled, *table)
    missing = xla.lost(spec, ready.shift)
    return out[:, :, :n, : given.v.shape[3]], lse[:, :, :n] + missing


def _stages(precision: Precision, sizes: Sizes, d: int, e: int) -> int:
    """Return how many visits' keys and values memory holds."""
    wide = 1 if precision.pv else 2
    room = hopper.MEMORY - RESERVED - sizes.rows * (d + 2 * e)
    room -= sizes.rows * sizes.columns if precision.pv else 0
    return max(1, min(STAGES, room // (sizes.columns * (d + wide * e + 4))))


def _kernel(
    spec: LowBit, sizes: Sizes, names: list[str], shared: int, interpret: bool, *refs: Any,
    q: Any, k: Any, v: Any, scales: Any, weights: Any, result: Any, sums: Any, here: Any,
    k_full: Any, v_full: Any, k_free: Any, v_free: Any, places: Any,
) -> None:  # fmt: skip
    """Attend from a block of rows."""
    problem, precision = spec.asked, spec.precision
    inputs = dict(zip(names, refs, strict=False))
    ends, visits, out_ref, lse_ref = refs[len(names) :]
    head, turn, batch = (lax.axis_index(name) for name in ("heads", "lines", "batch"))
    me, (workers, stages) = lax.axis_index("wg"), (q.shape[0], k.shape[0])
    group = lax.div(head, jnp.asarray(shared, head.dtype))
    own = of(ends, batch)
    line, begin, middle, end = (ends[own, turn, x] for x in range(4))
    whole = ceil if precision.exponents else (lambda x: x)
    peak = precision.log2_peak

    def place_of(step: Any) -> Any:
        """Return the first column of a visit."""
        return visits[own, step] * sizes.columns

    @pl.when(me < workers)
    def compute() -> None:
        plgpu.set_max_registers(hopper.COMPUTING, action="increase")
        finish = Finish(problem, sizes.m, sizes.columns, inputs, batch, head)
        first = line * sizes.rows + me * ROWS
        mine, part = q.at[me], pl.ds(first, ROWS)

        of_rows = partial(of_block, inputs, (batch, head), part, layout=DOWN)
        rows = inputs["q"].at[of(inputs["q"], batch), head, part]
        plgpu.copy_gmem_to_smem(rows, mine, here.at[me])
        factor = of_rows("q scale")
        shift = of_rows("shift") if "shift" in inputs else None
        top, total = begun(spec, inputs, (batch, head), shift, ROWS, DOWN)
        width = result.shape[2]
        step_of = width if weights is None else PART if width <= PART else PART // 2
        parts = [pl.ds(x, min(step_of, width - x)) for x in range(0, width, step_of)]
        means = tuple(hopper.filled((ROWS, int(x.size)), 0.0, MATRIX) for x in parts)
        plgpu.barrier_wait(here.at[me])

        def change() -> None:
            if places is not None:
                plgpu.barrier_arrive(places)
                plgpu.barrier_wait(places)

        def scaled(slot: Any) -> Any:
            """Return products in float32."""
            exact = jnp.int32 if precision.qk.whole else jnp.float32
            keys = k.at[slot].transpose((1, 0))
            s = hopper.product(mine, keys, interpret=interpret, dtype=exact, during=change)
            s = s.astype(jnp.float32)
            columns = plgpu.load(scales.at[slot], layout=ACROSS)
            plgpu.commit_smem()  # they are read before they are overwritten
            plgpu.barrier_arrive(k_free.at[slot])
            s = s * rows_of(factor, s.shape) * columns_of(columns, s.shape)
            if shift is not None and problem.soft_cap is not None:
                s = s + rows_of(shift, s.shape)
            return s

        def visit(masked: bool, step: Any, carry: Any) -> Any:
            top, total, means = carry
            slot = hopper.slot(step - begin, stages)
            plgpu.barrier_wait(k_full.at[slot])
            found = finish(scaled(slot), (first, place_of(step)), masked)
            new = jnp.maximum(top, whole(jnp.max(found.s, axis=1) * found.factor))
            p = jnp.exp2(found.s * found.factor - rows_of(new - peak, found.s.shape))
            p = p.astype(v.dtype)
            fall = jnp.exp2(top - new)
            total = total * fall + jnp.sum(p.astype(jnp.float32), axis=1)
            means = tuple(mean * rows_of(fall, mean.shape) for mean in means)
            if weights is not None:
                weights[me] = p
                plgpu.commit_smem()
            if places is not None:
                plgpu.barrier_arrive(places)
            plgpu.barrier_wait(v_full.at[slot])
            if places is not None:
                plgpu.barrier_wait(places)
            if weights is None:
                means = hopper.added((means[0], p, v.at[slot]), interpret=interpret)
            else:
                means = tuple(
                    mean + hopper.product(
                        weights.at[me], v.at[slot, x].transpose((1, 0)), interpret=interpret
                    )
                    for mean, x in zip(means, parts, strict=True)
                )  # fmt: skip
            plgpu.barrier_arrive(v_free.at[slot])
            return new, total, means

        pl.when(me == 1)(change)
        carry = lax.fori_loop(begin, middle, partial(visit, False), (top, total, means))
        if finish.mixes:
            carry = lax.fori_loop(middle, end, partial(visit, True), carry)
        top, total, means = carry
        pl.when(me == 0)(change)
        there = total > 0
        safe = jnp.where(there, total, 1.0)
        share = jnp.where(there, 1 / safe, 0.0)
        for mean, x in zip(means, parts, strict=True):
            mean = mean * rows_of(share, mean.shape)
            if "v scale" in inputs:
                line_of = of_block(inputs, (batch, group), x, "v scale", layout=ACROSS)
                mean = mean * columns_of(line_of, mean.shape)
            result[me, :, x] = mean.astype(out_ref.dtype)
        sums[me] = jnp.where(there, (top + jnp.log2(safe) - peak) / LOG2E, -jnp.inf)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(result.at[me], out_ref.at[batch, head, part])
        plgpu.copy_smem_to_gmem(sums.at[me], lse_ref.at[batch, head, part])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(me == workers)
    def streamed() -> None:
        rings = ("k", k, k_full, k_free), ("v", v, v_full, v_free)
        bring(inputs, rings, scales, (batch, group), visits.at[own], (begin, end))
