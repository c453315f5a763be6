"""Products of quantised matrices on Blackwell's tensor cores, which have memory for their sums.

A block of threads goes from tile to tile of the result, with a warpgroup for each of three duties:
one fetches blocks of x and w into a ring of shared memory, one multiplies them into one of two
sums, and one scales, activates and writes the other. Scales of small blocks (MXFP8, MXFP4 and
NVFP4) are multiplied by the tensor cores themselves.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxinf_kernels import hopper
from jaxinf_kernels.blackwell import LINE, MATRIX, ROWS
from jaxinf_kernels.quantized_matmul.gpu_blocks import SUMMED
from jaxinf_kernels.quantized_matmul.gpu_hopper import (
    COMPUTING,
    Plan,
    Tile,
    each,
    own,
    place,
    quotient,
    scale_at,
    swizzle,
)
from jaxinf_kernels.quantized_matmul.problem import finish

FETCHING, MULTIPLYING, STORING = range(3)
"""Warpgroups."""
SUMS = 2
"""Tiles of sums: one is written while the other is summed."""


def call(plan: Plan, arrays: list[Array], shape: tuple[int, int, int], out: Any, cores: int) -> Any:
    """Return the product [B, N, M]."""
    tiles = plan.grid[0] * plan.grid[1] * plan.grid[2]
    named = dict(zip(plan.names, arrays, strict=True))
    x, w, wide = named["x"].dtype, named["w"].dtype, COMPUTING * plan.columns
    held = (wide, plan.depth) if plan.by_columns else (plan.depth, wide)
    part = 128 // jnp.dtype(out).itemsize
    scratch = {
        "x_s": _block((plan.stages, ROWS, plan.depth), x),
        "w_s": _block((plan.stages, *held), w),
        "out_s": hopper.block((ROWS, part), out),
        "sums": plgpu.TMEM((ROWS, SUMS * wide), plan.unit),
        "full": plgpu.Barrier(num_arrivals=4 if "x fine" in named else 2, num_barriers=plan.stages),
        "free": plgpu.Barrier(num_barriers=plan.stages, orders_tensor_core=True),
        "summed": plgpu.Barrier(num_barriers=SUMS, orders_tensor_core=True),
        "stored": plgpu.Barrier(num_barriers=SUMS, orders_tensor_core=True),
    }
    for side, size in (("x", ROWS), ("w", wide)):
        if f"{side} fine" in named:
            scale = named[f"{side} fine"].dtype
            count = plan.depth // plan.sizes[0]
            lines = plan.stages, size // ROWS, count // 4, 32, LINE
            scratch[f"{side}_lines"] = plgpu.SMEM(lines, scale)
            layout: Any = plgpu.TMEMLayout.SCALES_LAYOUT()
            scratch[f"{side}_scales"] = plgpu.TMEM((size, count), scale, layout=layout)
    return plgpu.kernel(
        partial(_kernel, plan, min(cores, tiles)),
        out_type=jax.ShapeDtypeStruct(shape, out),
        grid=(min(cores, tiles),),
        grid_names=("cores",),
        num_threads=3,
        thread_name="warpgroup",
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(),
        kernel_name="quantized_matmul",
    )(*arrays)


def _block(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return a block of shared memory for operands, also of four bits."""
    width, size = swizzle(shape[-1], dtype)
    tiles = plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(size)
    return plgpu.SMEM(shape, dtype, transforms=tiles)


def _kernel(plan: Plan, cores: int, *refs: Any, **scratch: Any) -> None:
    """Do a warpgroup's duty, from tile to tile."""
    inputs = dict(zip(plan.names, refs, strict=False))
    out_ref = refs[len(plan.names)]
    me, core = jax.lax.axis_index("warpgroup"), jax.lax.axis_index("cores")
    tiles = plan.grid[0] * plan.grid[1] * plan.grid[2]
    mine = quotient(tiles - 1 - core, cores) + 1
    at = partial(place, plan, core, cores)

    @pl.when(me == FETCHING)
    def fetch() -> None:
        plgpu.set_max_registers(40, action="decrease")
        each(mine, lambda t: _fetch(plan, inputs, scratch, at(t)))

    @pl.when(me == MULTIPLYING)
    def multiply() -> None:
        plgpu.set_max_registers(40, action="decrease")
        each(mine, lambda t: _multiply(plan, inputs, scratch, at(t)))

    @pl.when(me == STORING)
    def store() -> None:
        plgpu.set_max_registers(232, action="increase")
        each(mine, lambda t: _store(plan, inputs, out_ref, scratch, at(t)))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _fetch(plan: Plan, inputs: Any, scratch: Any, tile: Tile) -> None:
    """Fetch a tile's blocks as places in the ring become free."""
    wide = COMPUTING * plan.columns
    x, w = own(inputs["x"], tile.batch), own(inputs["w"], tile.batch)
    rows, across = pl.ds(tile.down * ROWS, ROWS), pl.ds(tile.across * wide, wide)

    def step(s: Any) -> None:
        g = tile.number * plan.steps + s
        slot = hopper.slot(g, plan.stages)
        full = scratch["full"].at[slot]

        @pl.when(g >= plan.stages)
        def wait() -> None:
            plgpu.barrier_wait(scratch["free"].at[slot])

        along = pl.ds((tile.first + s) * plan.depth, plan.depth)
        plgpu.copy_gmem_to_smem(x.at[rows, along], scratch["x_s"].at[slot], full)
        block = w.at[across, along] if plan.by_columns else w.at[along, across]
        plgpu.copy_gmem_to_smem(block, scratch["w_s"].at[slot], full)
        if "x fine" not in inputs:
            return
        for side, first in (("x", tile.down), ("w", tile.across * (wide // ROWS))):
            lines = scratch[f"{side}_lines"]
            _, high, count, *_ = lines.shape
            part = pl.ds(first, high), pl.ds((tile.first + s) * count, count)
            block = own(inputs[f"{side} fine"], tile.batch).at[part]
            plgpu.copy_gmem_to_smem(block, lines.at[slot], full)

    each(plan.steps, step)


def _multiply(plan: Plan, inputs: Any, scratch: Any, tile: Tile) -> None:
    """Multiply a tile's blocks, into one sum or each into one of its own."""
    wide, single = COMPUTING * plan.columns, plan.kind == SUMMED
    begin = tile.number * plan.steps

    def step(s: Any) -> None:
        g = begin + s
        slot = hopper.slot(g, plan.stages)
        which = g if single else tile.number
        sum_slot = hopper.slot(which, SUMS)

        @pl.when((which >= SUMS) & (single | (s == 0)))
        def wait() -> None:
            plgpu.barrier_wait(scratch["stored"].at[sum_slot])

        plgpu.barrier_wait(scratch["full"].at[slot])
        w = scratch["w_s"].at[slot]
        options = {}
        if "x fine" in inputs:
            for side, name in (("x", "a_scale"), ("w", "b_scale")):
                options[name] = scratch[f"{side}_scales"]
                plgpu.async_copy_scales_to_tmem(scratch[f"{side}_lines"].at[slot], options[name])
        plgpu.tcgen05_mma(
            scratch["sums"].at[:, pl.ds(sum_slot * wide, wide)],
            scratch["x_s"].at[slot],
            w.transpose((1, 0)) if plan.by_columns else w,
            scratch["free"].at[slot],
            accumulate=False if single else s > 0,
            **options,
        )

        @pl.when(single | (s == plan.steps - 1))
        def done() -> None:
            plgpu.tcgen05_commit_arrive(scratch["summed"].at[sum_slot])

    each(plan.steps, step)


def _read(scratch: Any, at: Any, size: int) -> Any:
    """Return columns of sums."""
    found = plgpu.async_load_tmem(scratch["sums"].at[:, pl.ds(at, size)], layout=MATRIX)
    plgpu.wait_load_tmem()
    return found


def _vector(ref: Any, axis: int, shape: tuple[int, int]) -> Any:
    """Read a number for each row or column and spread it."""
    one = plgpu.load(ref, layout=MATRIX.reduce(1 - axis), optimized=False)
    return jax.lax.broadcast_in_dim(one, shape, (axis,))


def _scaled_sums(plan: Plan, inputs: Any, scratch: Any, tile: Tile, parts: list[Any]) -> Any:
    """Add up sums of steps, each with its scales, in float32."""
    wide, begin = COMPUTING * plan.columns, tile.number * plan.steps
    rows = pl.ds(tile.down * ROWS, ROWS)

    def step(s: Any, totals: Any) -> Any:
        slot, row = hopper.slot(begin + s, SUMS), (tile.first + s) * plan.depth
        down = None
        if "x scales" in inputs:
            ref = own(inputs["x scales"], tile.batch)
            down = ref.at[scale_at(ref, row, plan.sizes[0]), rows]
        plgpu.barrier_wait(scratch["summed"].at[slot])
        added = []
        for (at, size), total in zip(parts, totals, strict=True):
            shape = ROWS, size
            one = _read(scratch, slot * wide + at, size).astype(jnp.float32)
            if down is not None:
                one = one * _vector(down, 0, shape)
            if "w scales" in inputs:
                ref = own(inputs["w scales"], tile.batch)
                columns = pl.ds(tile.across * wide + at, size)
                one = one * _vector(ref.at[scale_at(ref, row, plan.sizes[1]), columns], 1, shape)
            added.append(total + one)
        plgpu.barrier_arrive(scratch["stored"].at[slot])
        return tuple(added)

    start = tuple(hopper.filled((ROWS, size), 0.0, MATRIX) for _, size in parts)
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(plan.steps), step, start)


def _store(plan: Plan, inputs: Any, out_ref: Any, scratch: Any, tile: Tile) -> None:
    """Scale, shift and activate sums, and write them."""
    out_s, wide = scratch["out_s"], COMPUTING * plan.columns
    part = out_s.shape[1]
    parts = [(at, part) for at in range(0, wide, part)]
    shape, rows = (ROWS, part), pl.ds(tile.down * ROWS, ROWS)
    sums = None
    if plan.kind == SUMMED:
        sums = _scaled_sums(plan, inputs, scratch, tile, parts)
    row = None
    if "rows" in inputs:
        row = _vector(own(inputs["rows"], tile.batch).at[rows], 0, shape)
    out = out_ref.at[tile.result]
    slot = hopper.slot(tile.number, SUMS)
    if sums is None:
        plgpu.barrier_wait(scratch["summed"].at[slot])
    for i, (at, size) in enumerate(parts):
        if sums is None:
            found = _read(scratch, slot * wide + at, size)
            if i == len(parts) - 1:
                plgpu.barrier_arrive(scratch["stored"].at[slot])
        else:
            found = sums[i]
        columns = pl.ds(tile.across * wide + at, size)
        if plan.splits == 1:
            column, bias = (
                _vector(own(inputs[name], tile.batch).at[columns], 1, shape)
                if name in inputs
                else None
                for name in ("columns", "bias")
            )
            found = finish(found.astype(jnp.float32), (row, column), bias, plan.activation)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out_s[...] = found.astype(out_s.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_s, out.at[rows, columns])
