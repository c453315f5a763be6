"""Attention on Blackwell's tensor cores.

Products are by tcgen05, with their sums and the weights in tensor memory. Of a block of threads
each computing warpgroup has 128 rows: it takes the products of a block of keys into registers, has
those of the next one begun, and takes exponentials while they are under way.
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
    RESERVED,
    WIDTH,
    Finish,
    bring,
    lines,
    of,
    padded,
)
from jaxinf_kernels.attention.problem import Problem
from jaxinf_kernels.attention.schedule import Sizes
from jaxinf_kernels.blackwell import DOWN, MATRIX, ROWS
from jaxinf_kernels.hopper import rows_of
from jaxinf_kernels.tiles import up

COLUMNS = 64
"""Keys of a block; sums are taken into registers in parts of as many columns."""


def attend(*arrays: Array, spec: Problem, interpret: Any = False) -> tuple[Array, Array]:
    """Return outputs [B, H, N, E] and the logarithms of the softmax's sums [B, H, N]."""
    given = spec.operands(arrays)
    (_, heads, n, _), (_, groups, m, e) = given.q.shape, given.v.shape
    batch, dtype = max(a.shape[0] for a in arrays), given.v.dtype
    widths = [up(a.shape[3], WIDTH) for a in (given.q, given.v)]
    workers, stages = _fitting(n, widths, dtype.itemsize)
    sizes = Sizes(n, m, workers * ROWS, COLUMNS)
    filled, names = padded(spec, given, sizes.rows, sizes.columns)
    table = lines(spec, given, sizes, by_rows=True)
    height = filled[0].shape[2]
    tensor = plgpu.Barrier(num_barriers=workers, orders_tensor_core=True)
    free = plgpu.Barrier(num_arrivals=workers, num_barriers=stages)
    out, lse = plgpu.kernel(
        partial(_kernel, spec, sizes, names, heads // groups),
        out_type=(
            jax.ShapeDtypeStruct((batch, heads, height, widths[1]), dtype),
            jax.ShapeDtypeStruct((batch, heads, height), jnp.float32),
        ),
        grid=(heads, table.ends.shape[1], batch),
        grid_names=("heads", "lines", "batch"),
        num_threads=workers + 1,
        thread_name="wg",
        scratch_types=dict(
            q=hopper.block((workers, ROWS, widths[0]), dtype),
            k=hopper.block((stages, COLUMNS, widths[0]), dtype),
            v=hopper.block((stages, COLUMNS, widths[1]), dtype),
            result=hopper.block((workers, ROWS, WIDTH), dtype),
            sums=plgpu.SMEM((workers, ROWS), jnp.float32),
            logits=[plgpu.TMEM((ROWS, COLUMNS), jnp.float32)] * workers,
            weights=[plgpu.TMEM((ROWS, COLUMNS), dtype, packed=True)] * workers,
            means=[plgpu.TMEM((ROWS, widths[1]), jnp.float32)] * workers,
            here=plgpu.Barrier(num_barriers=workers),
            k_full=plgpu.Barrier(num_barriers=stages),
            v_full=plgpu.Barrier(num_barriers=stages),
            k_free=free,
            v_free=free,
            multiplied=tensor,
            summed=tensor,
        ),
        compiler_params=hopper.PARAMS,
        interpret=interpret or None,
    )(*filled, *table)
    return out[:, :, :n, :e], lse[:, :, :n]


def _fitting(n: int, widths: list[int], itemsize: int) -> tuple[int, int]:
    """Return how many warpgroups compute, and how many blocks of keys are held: two at least.

    Tensor memory has 512 columns, shared memory the queries and a part of the results.
    """
    d, e = widths

    def stages(workers: int) -> int:
        room = hopper.MEMORY - RESERVED - workers * ROWS * (d + WIDTH) * itemsize
        return min(4, room // (COLUMNS * (d + e) * itemsize))

    both = stages(2) > 1 and e <= 128 and n > ROWS
    return (2, stages(2)) if both else (1, stages(1))


def _kernel(
    spec: Problem, sizes: Sizes, names: list[str], shared: int, *refs: Any, q: Any, k: Any, v: Any,
    result: Any, sums: Any, logits: Any, weights: Any, means: Any, here: Any, k_full: Any,
    v_full: Any, k_free: Any, v_free: Any, multiplied: Any, summed: Any,
) -> None:  # fmt: skip
    """Attend from a block of rows."""
    inputs = dict(zip(names, refs, strict=False))
    ends, visits, out_ref, lse_ref = refs[len(names) :]
    head, turn, batch = (lax.axis_index(name) for name in ("heads", "lines", "batch"))
    me, workers, stages = lax.axis_index("wg"), q.shape[0], k.shape[0]
    own = of(ends, batch)
    line, begin, middle, end = (ends[own, turn, x] for x in range(4))

    def place_of(step: Any) -> Any:
        """Return the first column of a visit."""
        return visits[own, step] * sizes.columns

    def compute(number: int) -> None:
        """Attend from a warpgroup's rows."""
        plgpu.set_max_registers(hopper.COMPUTING, action="increase")
        finish = Finish(spec, sizes.m, sizes.columns, inputs, batch, head, layout=MATRIX)
        first = line * sizes.rows + number * ROWS
        part = pl.ds(first, ROWS)
        score, weight, mean = logits[number], weights[number], means[number]
        rows = inputs["q"].at[of(inputs["q"], batch), head, part]
        plgpu.copy_gmem_to_smem(rows, q.at[number], here.at[number])
        top, total = (hopper.filled((ROWS,), x, DOWN) for x in (LOWEST, 0.0))
        if "sinks" in inputs:
            sink = inputs["sinks"][of(inputs["sinks"], batch), head] * LOG2E
            top, total = plgpu.layout_cast(jnp.broadcast_to(sink, (ROWS,)), DOWN), total + 1.0
        plgpu.barrier_wait(here.at[number])

        def multiply(step: Any) -> None:
            """Begin the products with a visit's keys."""
            slot = hopper.slot(step - begin, stages)
            plgpu.barrier_wait(k_full.at[slot])
            keys = k.at[slot].transpose((1, 0))
            plgpu.tcgen05_mma(score, q.at[number], keys, multiplied.at[number], accumulate=False)

        def close(step: Any) -> None:
            """Wait for the sums of a visit."""
            plgpu.barrier_wait(summed.at[number])
            plgpu.barrier_arrive(v_free.at[hopper.slot(step - begin, stages)])

        def visit(masked: bool, step: Any, carry: Any) -> Any:
            top, total = carry
            slot = hopper.slot(step - begin, stages)
            plgpu.barrier_wait(multiplied.at[number])
            plgpu.barrier_arrive(k_free.at[slot])
            s = plgpu.async_load_tmem(score, layout=MATRIX)
            plgpu.wait_load_tmem()
            pl.when(step + 1 < end)(partial(multiply, step + 1))
            found = finish(s, (first, place_of(step)), masked)
            new = jnp.maximum(top, jnp.max(found.s, axis=1) * found.factor)
            p = jnp.exp2(found.s * found.factor - rows_of(new, s.shape)).astype(v.dtype)
            fall = jnp.exp2(top - new)
            total = total * fall + jnp.sum(p.astype(jnp.float32), axis=1)

            @pl.when(step > begin)
            def lower() -> None:
                close(step - 1)
                for x in range(0, mean.shape[1], WIDTH):
                    some = mean.at[:, pl.ds(x, WIDTH)]
                    before = plgpu.async_load_tmem(some, layout=MATRIX)
                    plgpu.wait_load_tmem()
                    plgpu.async_store_tmem(some, before * rows_of(fall, before.shape))

            plgpu.async_store_tmem(weight, p)
            plgpu.commit_tmem()
            plgpu.barrier_wait(v_full.at[slot])
            plgpu.tcgen05_mma(mean, weight, v.at[slot], summed.at[number], accumulate=step > begin)
            return new, total

        pl.when(begin < end)(partial(multiply, begin))
        carry = lax.fori_loop(begin, middle, partial(visit, False), (top, total))
        if finish.mixes:
            carry = lax.fori_loop(middle, end, partial(visit, True), carry)
        top, total = carry
        pl.when(begin < end)(lambda: close(end - 1))
        there = total > 0
        safe = jnp.where(there, total, 1.0)
        share = jnp.where(there, 1 / safe, 0.0)
        to = result.at[number]
        for x in range(0, mean.shape[1], WIDTH):
            some = plgpu.async_load_tmem(mean.at[:, pl.ds(x, WIDTH)], layout=MATRIX)
            plgpu.wait_load_tmem()
            seen = rows_of(there, some.shape)  # where nothing is, sums were never begun
            some = jnp.where(seen, some * rows_of(share, some.shape), 0.0)
            plgpu.wait_smem_to_gmem(0)
            to[...] = some.astype(to.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(to, out_ref.at[batch, head, part, pl.ds(x, WIDTH)])
        sums[number] = jnp.where(there, top / LOG2E + jnp.log(safe), -jnp.inf)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(sums.at[number], lse_ref.at[batch, head, part])
        plgpu.wait_smem_to_gmem(0)

    for number in range(workers):
        pl.when(me == number)(partial(compute, number))

    @pl.when(me == workers)
    def streamed() -> None:
        group = lax.div(head, jnp.asarray(shared, head.dtype))
        rings = ("k", k, k_full, k_free), ("v", v, v_full, v_free)
        bring(inputs, rings, (batch, group), visits.at[own], begin, end)
