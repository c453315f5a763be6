"""Rows times the matrices of their groups on Blackwell's tensor cores.

As on Hopper, see :mod:`gpu_rows`, but with a warpgroup for each of three duties: one fetches, one
multiplies into one of two sums in the tensor cores' memory, and one scales and writes the other.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxinf_kernels import hopper
from jaxinf_kernels.grouped_matmul.gpu_blocks import COMPUTING
from jaxinf_kernels.grouped_matmul.gpu_rows import (
    BEYOND,
    BLOCK,
    COMPUTED,
    GROUP,
    HIGH,
    LOW,
    Plan,
    fetch,
    loop,
    own,
    place,
    quotient,
    write,
)

FETCHING, MULTIPLYING, STORING = range(3)
"""Warpgroups."""
SUMS = 2
"""Tiles of sums: one is written while the other is summed."""
LAYOUT = plgpu.Layout.TCGEN05


def call(plan: Plan, arrays: list[Array], shape: tuple[int, int, int], out: Any, cores: int) -> Any:
    """Return products [B, N, M] of table, x, w and perhaps scales; tiles have 128 rows."""
    batch, down, across = plan.grid
    count, wide = min(cores, batch * down * across), COMPUTING * plan.blocks.columns
    rows, stages, dtype = plan.blocks.rows, plan.stages, arrays[1].dtype
    held = (wide, plan.depth) if plan.by_columns else (plan.depth, wide)
    part = 128 // jnp.dtype(out).itemsize
    lines = plgpu.TilingTransform((1, part)), plgpu.SwizzleTransform(128)  # any row begins a copy
    return plgpu.kernel(
        partial(_kernel, plan, count),
        out_type=jax.ShapeDtypeStruct(shape, out),
        grid=(count,),
        grid_names=("cores",),
        num_threads=3,
        thread_name="warpgroup",
        scratch_types={
            "x_s": hopper.block((stages, rows, plan.depth), dtype),
            "w_s": hopper.block((stages, *held), dtype),
            "out_s": plgpu.SMEM((rows, part), out, transforms=lines),
            "sums": plgpu.TMEM((rows, SUMS * wide), jnp.int32 if plan.scaled else jnp.float32),
            "full": plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            "free": plgpu.Barrier(num_barriers=stages, orders_tensor_core=True),
            "summed": plgpu.Barrier(num_barriers=SUMS, orders_tensor_core=True),
            "stored": plgpu.Barrier(num_barriers=SUMS, orders_tensor_core=True),
        },
        compiler_params=plgpu.CompilerParams(),
        kernel_name="grouped_matmul",
    )(*arrays)


def _kernel(plan: Plan, cores: int, table: Any, x: Any, w: Any, *refs: Any, **scratch: Any) -> None:
    """Do a warpgroup's duty, from tile to tile."""
    *scales, out_ref = refs
    me, core = jax.lax.axis_index("warpgroup"), jax.lax.axis_index("cores")
    batch, down, across = plan.grid
    mine = quotient(batch * down * across - 1 - core, cores) + 1
    at = partial(place, plan, core, cores)

    def read(tile: Any, name: int) -> Any:
        return table[name, tile.batch if table.shape[1] > 1 else 0, tile.visit]

    def each(function: Any) -> None:
        """Call a function with each tile and how many before it were computed."""

        def one(t: Any, before: Any) -> Any:
            function(at(t), before)
            return before + read(at(t), COMPUTED)

        loop(mine, one, jnp.int32(0))

    @pl.when(me == FETCHING)
    def fetching() -> None:
        plgpu.set_max_registers(40, action="decrease")

        def one(tile: Any, before: Any) -> None:
            begin = before * plan.steps
            call = partial(fetch, plan, x, w, scratch, tile, read(tile, GROUP), read, begin)
            pl.when(read(tile, COMPUTED) != 0)(call)

        each(one)

    @pl.when(me == MULTIPLYING)
    def multiplying() -> None:
        plgpu.set_max_registers(40, action="decrease")

        def one(tile: Any, before: Any) -> None:
            pl.when(read(tile, COMPUTED) != 0)(partial(_multiply, plan, scratch, before))

        each(one)

    @pl.when(me == STORING)
    def storing() -> None:
        plgpu.set_max_registers(232, action="increase")

        def one(tile: Any, before: Any) -> None:
            call = partial(_store, plan, scales, out_ref, scratch, tile, read, before)
            pl.when(read(tile, BEYOND) > read(tile, LOW))(call)

        each(one)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _multiply(plan: Plan, scratch: Any, before: Any) -> None:
    """Sum over all of k."""
    wide, slot = COMPUTING * plan.blocks.columns, hopper.slot(before, SUMS)

    @pl.when(before >= SUMS)
    def wait() -> None:
        plgpu.barrier_wait(scratch["stored"].at[slot])

    def step(s: Any, _: None) -> None:
        at = hopper.slot(before * plan.steps + s, plan.stages)
        plgpu.barrier_wait(scratch["full"].at[at])
        w = scratch["w_s"].at[at]
        plgpu.tcgen05_mma(
            scratch["sums"].at[:, pl.ds(slot * wide, wide)],
            scratch["x_s"].at[at],
            w.transpose((1, 0)) if plan.by_columns else w,
            scratch["free"].at[at],
            accumulate=s > 0,
        )

    loop(plan.steps, step)
    plgpu.tcgen05_commit_arrive(scratch["summed"].at[slot])


def _store(
    plan: Plan, scales: Any, out_ref: Any, scratch: Any, tile: Any, read: Any, before: Any
) -> None:
    """Scale sums, and write the rows of the group, and of none."""
    rows, wide, out_s = plan.blocks.rows, COMPUTING * plan.blocks.columns, scratch["out_s"]
    begin, low, part = read(tile, BLOCK) * rows, read(tile, LOW), out_s.shape[1]
    slot, shape = hopper.slot(before, SUMS), (rows, part)
    mine = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=LAYOUT) < read(tile, HIGH)
    out = out_ref.at[tile.batch]

    def put(at: int, found: Any) -> None:
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out_s[...] = found.astype(out_s.dtype)
        plgpu.commit_smem()
        across = pl.ds(tile.across * wide + at, part)
        write(out_s, out, begin, low, read(tile, BEYOND) - low, across)

    @pl.when(read(tile, COMPUTED) == 0)
    def clear() -> None:
        for at in range(0, wide, part):
            put(at, hopper.filled(shape, 0.0, LAYOUT))

    @pl.when(read(tile, COMPUTED) != 0)
    def store() -> None:
        plgpu.barrier_wait(scratch["summed"].at[slot])
        for at in range(0, wide, part):
            block = scratch["sums"].at[:, pl.ds(slot * wide + at, part)]
            found = plgpu.async_load_tmem(block, layout=LAYOUT).astype(jnp.float32)
            plgpu.wait_load_tmem()
            if scales:
                ref = own(scales[0], tile.batch).at[pl.ds(begin, rows)]
                row = plgpu.load(ref, layout=LAYOUT.reduce(1), optimized=False)
                across = pl.ds(tile.across * wide + at, part)
                ref = own(scales[1], tile.batch).at[read(tile, GROUP), across]
                column = plgpu.load(ref, layout=LAYOUT.reduce(0), optimized=False)
                found = found * hopper.rows_of(row, shape) * hopper.columns_of(column, shape)
            put(at, jnp.where(mine, found, jnp.zeros_like(found)))
        plgpu.barrier_arrive(scratch["stored"].at[slot])
