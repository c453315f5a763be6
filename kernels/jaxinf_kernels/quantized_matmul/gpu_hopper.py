"""Products of quantised matrices on Hopper's tensor cores.

A block of threads goes from tile to tile of the result. One warpgroup of three fetches blocks of x
and w into a ring of shared memory; the other two have half of the tile's columns each. Elements
that tensor cores do not take, or whose scales differ along what is summed over, are widened from
shared memory to shared memory by the warpgroup that multiplies them, while the product before is
under way.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxinf_kernels import hopper
from jaxinf_kernels.quantized_matmul.gpu_blocks import SUMMED, bits
from jaxinf_kernels.quantized_matmul.problem import finish
from jaxinf_kernels.quantized_matmul.widen import widen

COMPUTING = 2
"""Warpgroups that multiply."""
FINE = plgpu.Layout.TILED(
    plgpu.Tiling(((16, 64), (4, 64), (8,))), warp_dims=(-5,), lane_dims=(-3, -2), vector_dim=-1
)
"""How elements that are widened lie in registers: eight of a row in a thread, four rows in a warp,
so that 16 rows, the smallest block with a scale of its own, are a warpgroup's."""


class Plan(NamedTuple):
    """The static part of a kernel."""

    kind: str
    """One of those of :mod:`gpu_blocks`."""
    names: tuple[str, ...]
    """Of what is given, in order."""
    form: Any
    """Of the elements of w that are widened."""
    unit: Any
    """The dtype of sums in tensor cores."""
    activation: str | None
    grid: tuple[int, int, int]
    """Batch, and tiles of rows and of columns."""
    splits: int
    """Parts of a sum, which are of the batch."""
    steps: int
    """Blocks of what is summed over, of a part."""
    rows: int
    columns: int
    """Of a warpgroup."""
    depth: int
    stages: int
    sizes: tuple[int, int]
    """Of x and of w, how many numbers share a scale."""
    chunk: int
    """Rows of w that are widened at once."""
    by_columns: bool
    """Whether w is given by columns, [B, M, K]."""


class Tile(NamedTuple):
    """Where a tile of the result lies."""

    number: Any
    """In the order of a block of threads."""
    result: Any
    """Of the batch of results, of which each part of a sum has one."""
    batch: Any
    first: Any
    """Step of the sum."""
    down: Any
    across: Any


def call(plan: Plan, arrays: list[Array], shape: tuple[int, int, int], out: Any, cores: int) -> Any:
    """Return the product [B, N, M]."""
    tiles = plan.grid[0] * plan.grid[1] * plan.grid[2]
    x, w = (arrays[plan.names.index(name)].dtype for name in ("x", "w"))
    wide = COMPUTING * plan.columns
    held = (wide, plan.depth) if plan.by_columns else (plan.depth, wide)
    part = 128 // jnp.dtype(out).itemsize
    scratch = {
        "x_s": hopper.block((plan.stages, plan.rows, plan.depth), x),
        "out_s": hopper.block((COMPUTING, plan.rows, part), out),
        "full": plgpu.Barrier(num_arrivals=2, num_barriers=plan.stages),
        "free": plgpu.Barrier(num_arrivals=COMPUTING, num_barriers=plan.stages),
    }
    if plan.form is not None:
        mine = (plan.columns, plan.depth) if plan.by_columns else (plan.depth, plan.columns)
        scratch["w_s"] = _narrow((plan.stages, *held), min(held[1], mine[1]), w)
        scratch["wide_s"] = hopper.block((COMPUTING, 2, *mine), x)
    else:
        scratch["w_s"] = hopper.block((plan.stages, *held), w)
    return plgpu.kernel(
        partial(_kernel, plan, min(cores, tiles)),
        out_type=jax.ShapeDtypeStruct(shape, out),
        grid=(min(cores, tiles),),
        grid_names=("cores",),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(),
        kernel_name="quantized_matmul",
    )(*arrays)


def swizzle(width: int, dtype: Any) -> tuple[int, int]:
    """Return the numbers, and the bytes, in a row of a tile of blocks with so many columns."""
    found = min(128, width * bits(dtype) // 8)
    return found * 8 // bits(dtype), found


def _narrow(shape: tuple[int, ...], columns: int, dtype: Any) -> Any:
    """Return shared memory for elements of few bits, of which a warpgroup has so many columns."""
    width, size = swizzle(columns, dtype)
    tiles = plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(size)
    return plgpu.SMEM(shape, dtype, transforms=tiles)


def _kernel(plan: Plan, cores: int, *refs: Any, full: Any, free: Any, **scratch: Any) -> None:
    """Fetch or multiply, from tile to tile."""
    inputs = dict(zip(plan.names, refs, strict=False))
    out_ref = refs[len(plan.names)]
    me, core = jax.lax.axis_index("warpgroup"), jax.lax.axis_index("cores")
    tiles = plan.grid[0] * plan.grid[1] * plan.grid[2]
    mine = quotient(tiles - 1 - core, cores) + 1

    at = partial(place, plan, core, cores)

    @pl.when(me == COMPUTING)
    def fetch() -> None:
        plgpu.set_max_registers(40, action="decrease")
        each(mine, lambda t: _fetch(plan, inputs, scratch, full, free, at(t)))

    @pl.when(me < COMPUTING)
    def multiply() -> None:
        plgpu.set_max_registers(232, action="increase")
        sums = _summed if plan.kind == SUMMED else _added

        def tile(t: Any) -> None:
            total = sums(plan, inputs, scratch, full, free, at(t), me)
            _store(plan, inputs, out_ref, scratch["out_s"], total, at(t), me)

        each(mine, tile)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def place(plan: Plan, core: Any, cores: int, t: Any) -> Tile:
    """Return where a tile of a block of threads lies."""
    _, down, across = plan.grid
    number = core + t * cores
    b = quotient(number, down * across)
    rest = number - b * (down * across)
    j = quotient(rest, down)
    batch = quotient(b, plan.splits)
    return Tile(t, b, batch, (b - batch * plan.splits) * plan.steps, rest - j * down, j)


def each(count: Any, function: Any) -> None:
    """Call a function with each number below a count."""

    def step(i: Any, _: None) -> None:
        function(i)

    jax.lax.fori_loop(jnp.int32(0), jnp.asarray(count, jnp.int32), step, None)


def quotient(a: Any, b: int) -> Any:
    """Divide a number that is not negative."""
    return jax.lax.div(a, jnp.int32(b))


def own(ref: Any, b: Any) -> Any:
    """Return one of a batch; what has a batch of one serves all of it."""
    return ref.at[b if ref.shape[0] > 1 else 0]


def _fetch(plan: Plan, inputs: Any, scratch: Any, full: Any, free: Any, tile: Tile) -> None:
    """Fetch a tile's blocks as places in the ring become free."""
    wide = COMPUTING * plan.columns
    x, w = own(inputs["x"], tile.batch), own(inputs["w"], tile.batch)
    rows, across = pl.ds(tile.down * plan.rows, plan.rows), pl.ds(tile.across * wide, wide)

    def step(s: Any) -> None:
        g = tile.number * plan.steps + s
        slot = hopper.slot(g, plan.stages)

        @pl.when(g >= plan.stages)
        def wait() -> None:
            plgpu.barrier_wait(free.at[slot])

        along = pl.ds((tile.first + s) * plan.depth, plan.depth)
        plgpu.copy_gmem_to_smem(x.at[rows, along], scratch["x_s"].at[slot], full.at[slot])
        block = w.at[across, along] if plan.by_columns else w.at[along, across]
        plgpu.copy_gmem_to_smem(block, scratch["w_s"].at[slot], full.at[slot])

    each(plan.steps, step)


def _block(plan: Plan, w_s: Any, slot: Any, me: Any) -> Any:
    """Return a warpgroup's part of w as it is multiplied."""
    part = pl.ds(me * plan.columns, plan.columns)
    if plan.by_columns:
        return w_s.at[slot, part].transpose((1, 0))
    return w_s.at[slot, slice(None), part]


def _added(plan: Plan, inputs: Any, scratch: Any, full: Any, free: Any, tile: Tile, me: Any) -> Any:
    """Sum over all of k in tensor cores; what is widened is so while the step before is summed."""
    begin = tile.number * plan.steps

    def run(acc: Any) -> Any:
        def step(s: Any) -> None:
            slot = hopper.slot(begin + s, plan.stages)
            plgpu.barrier_wait(full.at[slot])
            if plan.form is None:
                w = _block(plan, scratch["w_s"], slot, me)
            else:
                wide = scratch["wide_s"].at[me, hopper.slot(s, 2)]
                _widen(plan, inputs, scratch["w_s"].at[slot], wide, tile, s, me)
                plgpu.commit_smem()
                w = wide.transpose((1, 0)) if plan.by_columns else wide
            plgpu.wgmma(acc, scratch["x_s"].at[slot], w)
            plgpu.wgmma_wait(1)

            @pl.when(s > 0)
            def release() -> None:
                plgpu.barrier_arrive(free.at[hopper.slot(begin + s - 1, plan.stages)])

        each(plan.steps, step)
        total = acc[...]
        plgpu.barrier_arrive(free.at[hopper.slot(begin + plan.steps - 1, plan.stages)])
        return total

    return pl.run_scoped(run, plgpu.ACC((plan.rows, plan.columns), plan.unit))


def _summed(
    plan: Plan, inputs: Any, scratch: Any, full: Any, free: Any, tile: Tile, me: Any
) -> Any:
    """Sum elements of a step in tensor cores, and scaled sums in float32."""
    shape = plan.rows, plan.columns
    rows, columns = _parts(plan, tile, me)

    def step(s: Any, total: Any) -> Any:
        slot = hopper.slot(tile.number * plan.steps + s, plan.stages)
        scales = []
        if "x scales" in inputs:
            ref = own(inputs["x scales"], tile.batch)
            at = scale_at(ref, (tile.first + s) * plan.depth, plan.sizes[0])
            scales.append(hopper.rows_of(_vector(ref.at[at, rows], hopper.DOWN), shape))
        if "w scales" in inputs:
            ref = own(inputs["w scales"], tile.batch)
            at = scale_at(ref, (tile.first + s) * plan.depth, plan.sizes[1])
            scales.append(hopper.columns_of(_vector(ref.at[at, columns], hopper.ACROSS), shape))
        plgpu.barrier_wait(full.at[slot])

        def run(acc: Any) -> Any:
            plgpu.wgmma(acc, scratch["x_s"].at[slot], _block(plan, scratch["w_s"], slot, me))
            return acc[...]

        one = pl.run_scoped(run, plgpu.ACC(shape, plan.unit)).astype(jnp.float32)
        plgpu.barrier_arrive(free.at[slot])
        for scale in scales:
            one = one * scale
        return total + one

    return jax.lax.fori_loop(
        jnp.int32(0), jnp.int32(plan.steps), step, hopper.filled(shape, 0.0, hopper.MATRIX)
    )


def _widen(plan: Plan, inputs: Any, w: Any, wide: Any, tile: Tile, s: Any, me: Any) -> None:
    """Write a block of w as floats, with the scales of its blocks."""
    along, (_, columns) = (tile.first + s) * plan.depth, _parts(plan, tile, me)
    rows = plan.columns if plan.by_columns else plan.depth
    for begin in range(0, rows, plan.chunk):
        if plan.by_columns:
            part = pl.ds(me * plan.columns + begin, plan.chunk), pl.ds(0, plan.depth)
        else:
            part = pl.ds(begin, plan.chunk), pl.ds(me * plan.columns, plan.columns)
        codes = plgpu.load(w.at[part], layout=FINE, optimized=True)
        values = widen(codes, plan.form, jnp.float32)
        if "w scales" in inputs:
            ref = own(inputs["w scales"], tile.batch)
            at = scale_at(ref, (columns.start if plan.by_columns else along) + begin, plan.sizes[1])
            where = pl.ds(along, plan.depth) if plan.by_columns else columns
            scale = _vector(ref.at[at, where], FINE.reduce(0)).astype(jnp.float32)
            values = values * jax.lax.broadcast_in_dim(scale, values.shape, (1,))
        wide[pl.ds(begin, plan.chunk)] = values.astype(wide.dtype)


def scale_at(ref: Any, row: Any, size: int) -> Any:
    """Return which block a row belongs to; beyond the last all elements are 0."""
    return jnp.minimum(quotient(row, size), ref.shape[0] - 1)


def _parts(plan: Plan, tile: Tile, me: Any) -> tuple[Any, Any]:
    """Return which rows and columns of all are a warpgroup's."""
    first = (tile.across * COMPUTING + me) * plan.columns
    return pl.ds(tile.down * plan.rows, plan.rows), pl.ds(first, plan.columns)


def _vector(ref: Any, layout: Any) -> Any:
    """Read a number for each row or column from the device's memory."""
    return plgpu.load(ref, layout=layout, optimized=False)


def _store(
    plan: Plan, inputs: Any, out_ref: Any, out_s: Any, total: Any, tile: Tile, me: Any
) -> None:
    """Scale, shift and activate sums, and write them."""
    part = out_s.shape[2]
    rows, columns = _parts(plan, tile, me)
    shape = plan.rows, part
    raw = plan.splits > 1
    row = None
    if "rows" in inputs:
        row = hopper.rows_of(_vector(own(inputs["rows"], tile.batch).at[rows], hopper.DOWN), shape)
    out = out_ref.at[tile.result]
    for begin in range(0, plan.columns, part):
        at = pl.ds(columns.start + begin, part)
        column, bias = (
            hopper.columns_of(_vector(own(inputs[name], tile.batch).at[at], hopper.ACROSS), shape)
            if name in inputs
            else None
            for name in ("columns", "bias")
        )
        found = total[:, begin : begin + part]
        if not raw:
            found = finish(found.astype(jnp.float32), (row, column), bias, plan.activation)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out_s[me] = found.astype(out_s.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_s.at[me], out.at[rows, at])
