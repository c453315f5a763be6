"""Sums of rows' outer products by group on Hopper's tensor cores: the cotangents of matrices.

A tile of a group's matrix is summed over all blocks of rows that the group has some of, in order.
Rows of other groups in the first and the last of them are set to 0 in shared memory.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxinf_kernels import hopper
from jaxinf_kernels.grouped_matmul.gpu_blocks import COMPUTING, Blocks
from jaxinf_kernels.grouped_matmul.gpu_rows import loop, own, quotient

DEPTH = 64
"""Rows in a step."""


class Plan(NamedTuple):
    """The static part of a kernel."""

    grid: tuple[int, int, int, int]
    """Batch, groups, and tiles of a matrix' rows and columns."""
    stages: int
    blocks: Blocks


class Tile(NamedTuple):
    """A tile of a matrix, and the rows that it is summed over."""

    batch: Any
    group: Any
    down: Any
    across: Any
    low: Any
    """The first row, counted from the first step's."""
    high: Any
    """The row beyond the last, so counted too."""
    first: Any
    """Step."""
    steps: Any


def call(plan: Plan, arrays: list[Array], shape: tuple[int, ...], out: Any, cores: int) -> Any:
    """Return sums [B, G, K, M] of groups' begins and ends, [2, B, G], x and dy."""
    batch, groups, down, across = plan.grid
    count = min(cores, batch * groups * down * across)
    rows, columns, stages = plan.blocks.rows, plan.blocks.columns, plan.stages
    part, dtype = 128 // jnp.dtype(out).itemsize, arrays[1].dtype
    return plgpu.kernel(
        partial(_kernel, plan, count),
        out_type=jax.ShapeDtypeStruct(shape, out),
        grid=(count,),
        grid_names=("cores",),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
        scratch_types={
            "x_s": hopper.block((stages, DEPTH, rows), dtype),
            "dy_s": hopper.block((stages, DEPTH, COMPUTING * columns), dtype),
            "out_s": hopper.block((COMPUTING, rows, part), out),
            "full": plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            "free": plgpu.Barrier(num_arrivals=COMPUTING, num_barriers=stages),
            "masked": plgpu.Barrier(num_arrivals=COMPUTING),
        },
        compiler_params=plgpu.CompilerParams(),
        kernel_name="grouped_matmul_weights",
    )(*arrays)


def _kernel(
    plan: Plan, cores: int, bounds: Any, x: Any, dy: Any, out_ref: Any, **scratch: Any
) -> None:
    """Fetch or multiply, from tile to tile."""
    me, core = jax.lax.axis_index("warpgroup"), jax.lax.axis_index("cores")
    batch, groups, down, across = plan.grid
    mine = quotient(batch * groups * down * across - 1 - core, cores) + 1

    def place(t: Any) -> Tile:
        rest, places = core + t * cores, []
        for size in (across, down, groups):
            above = quotient(rest, size)
            places.append(rest - above * size)
            rest = above
        j, i, group = places
        b = rest if bounds.shape[1] > 1 else 0
        begin, end = bounds[0, b, group], bounds[1, b, group]
        first = quotient(begin, DEPTH)
        low, high = begin - first * DEPTH, end - first * DEPTH
        steps = jnp.where(end > begin, quotient(high + (DEPTH - 1), DEPTH), 0)
        return Tile(rest, group, i, j, low, high, first, steps)

    @pl.when(me == COMPUTING)
    def fetch() -> None:
        plgpu.set_max_registers(40, action="decrease")

        def one(t: Any, begin: Any) -> Any:
            tile = place(t)
            _fetch(plan, x, dy, scratch, tile, begin)
            return begin + tile.steps

        loop(mine, one, jnp.int32(0))

    @pl.when(me < COMPUTING)
    def multiply() -> None:
        plgpu.set_max_registers(232, action="increase")

        def one(t: Any, begin: Any) -> Any:
            tile = place(t)
            total = _sums(plan, scratch, tile, begin, me)
            _store(plan, out_ref, scratch["out_s"], total, tile, me)
            return begin + tile.steps

        loop(mine, one, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _fetch(plan: Plan, x: Any, dy: Any, scratch: Any, tile: Tile, begin: Any) -> None:
    """Fetch a group's blocks of rows as places in the ring become free."""
    (rows, columns, _), x, dy = plan.blocks, own(x, tile.batch), own(dy, tile.batch)
    wide = COMPUTING * columns

    def step(s: Any, _: None) -> None:
        slot = hopper.slot(begin + s, plan.stages)

        @pl.when(begin + s >= plan.stages)
        def wait() -> None:
            plgpu.barrier_wait(scratch["free"].at[slot])

        along, full = pl.ds((tile.first + s) * DEPTH, DEPTH), scratch["full"].at[slot]
        block = x.at[along, pl.ds(tile.down * rows, rows)]
        plgpu.copy_gmem_to_smem(block, scratch["x_s"].at[slot], full)
        block = dy.at[along, pl.ds(tile.across * wide, wide)]
        plgpu.copy_gmem_to_smem(block, scratch["dy_s"].at[slot], full)

    loop(tile.steps, step)


def _sums(plan: Plan, scratch: Any, tile: Tile, begin: Any, me: Any) -> Any:
    """Sum over a group's rows."""
    rows, columns, _ = plan.blocks
    part = pl.ds(me * columns, columns)

    def run(acc: Any) -> Any:
        def step(s: Any, _: None) -> None:
            slot = hopper.slot(begin + s, plan.stages)
            plgpu.barrier_wait(scratch["full"].at[slot])
            low, high = tile.low - s * DEPTH, tile.high - s * DEPTH

            @pl.when((low > 0) | (high < DEPTH))
            def mask() -> None:
                half = rows // COMPUTING
                _clear(scratch["x_s"].at[slot, slice(None), pl.ds(me * half, half)], low, high)
                _clear(scratch["dy_s"].at[slot, slice(None), part], low, high)
                plgpu.commit_smem()
                plgpu.barrier_arrive(scratch["masked"])
                plgpu.barrier_wait(scratch["masked"])

            x, dy = scratch["x_s"].at[slot], scratch["dy_s"].at[slot, slice(None), part]
            plgpu.wgmma(acc, x.transpose((1, 0)), dy)
            plgpu.wgmma_wait(1)

            @pl.when(s > 0)
            def release() -> None:
                plgpu.barrier_arrive(scratch["free"].at[hopper.slot(begin + s - 1, plan.stages)])

        loop(tile.steps, step)
        total = acc[...]

        @pl.when(tile.steps > 0)
        def release() -> None:
            last = begin + tile.steps - 1
            plgpu.barrier_arrive(scratch["free"].at[hopper.slot(last, plan.stages)])

        return total

    return pl.run_scoped(run, plgpu.ACC((rows, columns), jnp.float32))


def _clear(block: Any, low: Any, high: Any) -> None:
    """Set rows that are not a group's to 0."""
    rows = hopper.numbered(block.shape, 0)
    values = plgpu.load(block, layout=hopper.MATRIX)
    mine = (rows >= low) & (rows < high)
    plgpu.store(block, jnp.where(mine, values, jnp.zeros_like(values)))


def _store(plan: Plan, out_ref: Any, out_s: Any, total: Any, tile: Tile, me: Any) -> None:
    """Write a tile."""
    (rows, columns, _), part = plan.blocks, out_s.shape[2]
    first = (tile.across * COMPUTING + me) * columns
    out = out_ref.at[tile.batch, tile.group]
    for at in range(0, columns, part):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out_s[me] = total[:, at : at + part].astype(out_s.dtype)
        plgpu.commit_smem()
        block = out.at[pl.ds(tile.down * rows, rows), pl.ds(first + at, part)]
        plgpu.copy_smem_to_gmem(out_s.at[me], block)
