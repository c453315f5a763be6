"""Rows times the matrices of their groups on Hopper's tensor cores.

A block of threads goes from visit to visit, see :mod:`schedule`, and column by column. One
warpgroup of three fetches blocks of x and of the group's matrix into a ring of shared memory; the
other two have half of a tile's columns each. Each visit writes the rows of its group alone, so that
none waits for another.
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
from jaxinf_kernels.grouped_matmul.schedule import THERE, bounds, visits

GROUP, BLOCK, LOW, HIGH, BEYOND, COMPUTED = range(6)
"""Of the table: the group's and the block's numbers, the first row that is written and those beyond
the last that is computed and the last that is written, and whether any is computed."""


class Plan(NamedTuple):
    """The static part of a kernel."""

    scaled: bool
    """Whether elements are whole numbers, with scales of rows and of columns."""
    by_columns: bool
    """Whether matrices are given by columns, [B, G, M, K]."""
    grid: tuple[int, int, int]
    """Batch, visits and tiles of columns."""
    steps: int
    """Blocks of what is summed over."""
    depth: int
    stages: int
    blocks: Blocks


def table(sizes: Array, n: int, rows: int) -> Array:
    """Return the visits, [6, B, T]: rows that no group has are written with the last group's."""

    def one(sizes: Array) -> Array:
        found = visits(sizes, n, rows, by_group=False)
        there = (found.flags & THERE) != 0
        _, ends = bounds(sizes.astype(jnp.int32), n)
        # a block's rows behind all groups are 0, and so are blocks without any group's
        first = (found.flags & 2) != 0
        low = jnp.where(there, jnp.maximum(found.low, 0), 0)
        high = jnp.where(there, jnp.minimum(found.high, rows), 0)
        final = found.blocks * rows + high >= ends[-1]
        beyond = jnp.where(there & ~final, high, jnp.where(there | first, rows, 0))
        columns = found.groups, found.blocks, low, high, beyond, there
        return jnp.stack([jnp.asarray(c, jnp.int32) for c in columns])

    return jnp.moveaxis(jax.vmap(one)(sizes), 0, 1)


def call(plan: Plan, arrays: list[Array], shape: tuple[int, int, int], out: Any, cores: int) -> Any:
    """Return products [B, N, M] of table, x, w and perhaps scales."""
    batch, down, across = plan.grid
    count = min(cores, batch * down * across)
    rows, columns, stages = plan.blocks.rows, plan.blocks.columns, plan.stages
    wide, dtype = COMPUTING * columns, arrays[1].dtype
    held = (wide, plan.depth) if plan.by_columns else (plan.depth, wide)
    part = 128 // jnp.dtype(out).itemsize
    lines = plgpu.TilingTransform((1, part)), plgpu.SwizzleTransform(128)  # any row begins a copy
    return plgpu.kernel(
        partial(_kernel, plan, count),
        out_type=jax.ShapeDtypeStruct(shape, out),
        grid=(count,),
        grid_names=("cores",),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
        scratch_types={
            "x_s": hopper.block((stages, rows, plan.depth), dtype),
            "w_s": hopper.block((stages, *held), dtype),
            "out_s": plgpu.SMEM((COMPUTING, rows, part), out, transforms=lines),
            "full": plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            "free": plgpu.Barrier(num_arrivals=COMPUTING, num_barriers=stages),
        },
        compiler_params=plgpu.CompilerParams(),
        kernel_name="grouped_matmul",
    )(*arrays)


class Tile(NamedTuple):
    """A tile of the result."""

    batch: Any
    visit: Any
    across: Any


def _kernel(plan: Plan, cores: int, table: Any, x: Any, w: Any, *refs: Any, **scratch: Any) -> None:
    """Fetch or multiply, from tile to tile."""
    *scales, out_ref = refs
    me, core = jax.lax.axis_index("warpgroup"), jax.lax.axis_index("cores")
    batch, down, across = plan.grid
    mine = quotient(batch * down * across - 1 - core, cores) + 1

    at = partial(place, plan, core, cores)

    def read(tile: Tile, name: int) -> Any:
        return table[name, tile.batch if table.shape[1] > 1 else 0, tile.visit]

    @pl.when(me == COMPUTING)
    def fetching() -> None:
        plgpu.set_max_registers(40, action="decrease")

        def one(t: Any, begin: Any) -> Any:
            there = read(at(t), COMPUTED)
            pl.when(there != 0)(
                partial(fetch, plan, x, w, scratch, at(t), read(at(t), GROUP), read, begin)
            )
            return begin + there * plan.steps

        loop(mine, one, jnp.int32(0))

    @pl.when(me < COMPUTING)
    def multiplying() -> None:
        plgpu.set_max_registers(232, action="increase")

        def one(t: Any, begin: Any) -> Any:
            tile = at(t)
            there = read(tile, COMPUTED)

            @pl.when(read(tile, BEYOND) > read(tile, LOW))
            def visit() -> None:
                total = _sums(plan, scratch, begin, there * plan.steps, me)
                _store(plan, scales, out_ref, scratch["out_s"], total, tile, read, me)

            return begin + there * plan.steps

        loop(mine, one, jnp.int32(0))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def place(plan: Plan, core: Any, cores: int, t: Any) -> Tile:
    """Return where a tile of a block of threads lies."""
    _, down, across = plan.grid
    number = core + t * cores
    b = quotient(number, down * across)
    rest = number - b * (down * across)
    j = quotient(rest, down)
    return Tile(b, rest - j * down, j)


def loop(count: Any, function: Any, start: Any = None) -> Any:
    """Call a function of each number below a count and of what it returned before."""
    return jax.lax.fori_loop(jnp.int32(0), jnp.asarray(count, jnp.int32), function, start)


def quotient(a: Any, b: int) -> Any:
    """Divide a number that is not negative."""
    return jax.lax.div(a, jnp.int32(b))


def own(ref: Any, b: Any) -> Any:
    """Return one of a batch; what has a batch of one serves all of it."""
    return ref.at[b if ref.shape[0] > 1 else 0]


def fetch(
    plan: Plan, x: Any, w: Any, scratch: Any, tile: Tile, group: Any, read: Any, begin: Any
) -> None:
    """Fetch the blocks of a visit as places in the ring become free."""
    rows, wide = plan.blocks.rows, COMPUTING * plan.blocks.columns
    x, w = own(x, tile.batch), own(w, tile.batch).at[group]
    down, across = pl.ds(read(tile, BLOCK) * rows, rows), pl.ds(tile.across * wide, wide)

    def step(s: Any, _: None) -> None:
        slot = hopper.slot(begin + s, plan.stages)

        @pl.when(begin + s >= plan.stages)
        def wait() -> None:
            plgpu.barrier_wait(scratch["free"].at[slot])

        along, full = pl.ds(s * plan.depth, plan.depth), scratch["full"].at[slot]
        plgpu.copy_gmem_to_smem(x.at[down, along], scratch["x_s"].at[slot], full)
        block = w.at[across, along] if plan.by_columns else w.at[along, across]
        plgpu.copy_gmem_to_smem(block, scratch["w_s"].at[slot], full)

    loop(plan.steps, step)


def _sums(plan: Plan, scratch: Any, begin: Any, steps: Any, me: Any) -> Any:
    """Sum over all of k."""
    columns = plan.blocks.columns
    part = pl.ds(me * columns, columns)

    def run(acc: Any) -> Any:
        def step(s: Any, _: None) -> None:
            slot = hopper.slot(begin + s, plan.stages)
            plgpu.barrier_wait(scratch["full"].at[slot])
            if plan.by_columns:
                w = scratch["w_s"].at[slot, part].transpose((1, 0))
            else:
                w = scratch["w_s"].at[slot, slice(None), part]
            plgpu.wgmma(acc, scratch["x_s"].at[slot], w)
            plgpu.wgmma_wait(1)

            @pl.when(s > 0)
            def release() -> None:
                plgpu.barrier_arrive(scratch["free"].at[hopper.slot(begin + s - 1, plan.stages)])

        loop(steps, step)
        total = acc[...]

        @pl.when(steps > 0)
        def release() -> None:
            plgpu.barrier_arrive(scratch["free"].at[hopper.slot(begin + steps - 1, plan.stages)])

        return total

    unit = jnp.int32 if plan.scaled else jnp.float32
    return pl.run_scoped(run, plgpu.ACC((plan.blocks.rows, columns), unit))


def _store(
    plan: Plan, scales: Any, out_ref: Any, out_s: Any, total: Any, tile: Tile, read: Any, me: Any
) -> None:
    """Scale sums, and write the rows of the group, and of none."""
    (rows, columns, _), part = plan.blocks, out_s.shape[2]
    begin, low, high = read(tile, BLOCK) * rows, read(tile, LOW), read(tile, HIGH)
    count = read(tile, BEYOND) - low
    first = (tile.across * COMPUTING + me) * columns
    shape = rows, part
    mine = hopper.numbered(shape, 0) < high
    row = None
    if scales:
        ref = own(scales[0], tile.batch).at[pl.ds(begin, rows)]
        row = hopper.rows_of(plgpu.load(ref, layout=hopper.DOWN, optimized=False), shape)
    out = out_ref.at[tile.batch]
    for at in range(0, columns, part):
        found = total[:, at : at + part].astype(jnp.float32)
        across = pl.ds(first + at, part)
        if scales:
            ref = own(scales[1], tile.batch).at[read(tile, GROUP), across]
            column = plgpu.load(ref, layout=hopper.ACROSS, optimized=False)
            found = found * row * hopper.columns_of(column, shape)
        found = jnp.where(mine, found, jnp.zeros_like(found))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out_s[me] = found.astype(out_s.dtype)
        plgpu.commit_smem()
        write(out_s.at[me], out, begin, low, count, across)


def write(block: Any, out: Any, begin: Any, low: Any, count: Any, across: Any) -> None:
    """Write a number of a block's rows, from ``low`` on, to where the block's first is ``begin``.

    Copies are of fixed sizes: of the powers of two that the number is made of.
    """
    for size in [1 << i for i in reversed(range(block.shape[0].bit_length()))]:
        part = block.at[pl.ds(low, size)]
        copy = partial(plgpu.copy_smem_to_gmem, part, out.at[pl.ds(begin + low, size), across])
        pl.when((count & size) != 0)(copy)
        low = low + (count & size)
