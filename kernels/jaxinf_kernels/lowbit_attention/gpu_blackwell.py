"""Low-bit attention on Blackwell's tensor cores, which have memory for their sums.

The kernel is attention's, with products of few bits. Scales of small blocks (MXFP8, MXFP4 and
NVFP4) are multiplied by the tensor cores themselves; other factors are a row's, which stays in
registers, and a column's, which comes with the keys. Weights in bfloat16 go through tensor memory,
those in E4M3 through shared memory: tensor memory takes numbers of eight bits in another layout
than sums are rounded in.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxinf_kernels import hopper
from jaxinf_kernels.attention.gpu_blocks import LOG2E, RESERVED, WIDTH, Finish, lines, of
from jaxinf_kernels.attention.problem import Operands
from jaxinf_kernels.attention.schedule import Sizes
from jaxinf_kernels.blackwell import ACROSS, DOWN, LINE, MATRIX, ROWS, scales_ready
from jaxinf_kernels.hopper import columns_of, rows_of
from jaxinf_kernels.lowbit_attention import xla
from jaxinf_kernels.lowbit_attention.gpu_blocks import begun, bring, ceil, inputs_of, of_block
from jaxinf_kernels.lowbit_attention.precision import Precision
from jaxinf_kernels.lowbit_attention.prepare import filled, in_blocks, prepare, smoothed
from jaxinf_kernels.lowbit_attention.problem import LowBit
from jaxinf_kernels.tiles import filled_up, up

COLUMNS, STAGES = 64, 4
"""Keys of a visit, and visits whose keys are on their way or in use at most."""
DEPTH = 128
"""Head dimensions in blocks are filled up to a multiple: tensor cores read four scales at once."""


def attend(*arrays: Array, spec: LowBit, interpret: Any = False) -> tuple[Array, Array]:
    """Return outputs [B, H, N, E] and the logarithms of the softmax's sums [B, H, N]."""
    given = spec.asked.operands(arrays)
    (_, heads, n, _), (_, groups, m, e) = given.q.shape, given.v.shape
    batch, dtype = max(a.shape[0] for a in arrays), given.v.dtype
    ready = prepare(spec.precision, *given[:3])
    workers, stages = _fitting(spec.precision, n, given.q.shape[3], e)
    sizes = Sizes(n, m, workers * ROWS, COLUMNS)
    inputs, names = inputs_of(spec, given, ready, sizes)
    named = dict(zip(names, inputs, strict=True))
    if spec.precision.qk.block is not None:
        named = with_scales(spec, given, sizes, named, bool(interpret))
    table = lines(spec.asked, given, sizes, by_rows=True)
    height, width = named["q"].shape[2], up(e, WIDTH)
    out, lse = plgpu.kernel(
        partial(_kernel, spec, sizes, list(named), heads // groups, bool(interpret)),
        out_type=(
            jax.ShapeDtypeStruct((batch, heads, height, width), dtype),
            jax.ShapeDtypeStruct((batch, heads, height), jnp.float32),
        ),
        grid=(heads, table.ends.shape[1], batch),
        grid_names=("heads", "lines", "batch"),
        num_threads=workers + 1,
        thread_name="wg",
        scratch_types=_scratch(named, spec.precision, workers, stages, (width, dtype)),
        compiler_params=hopper.PARAMS,
        interpret=interpret or None,
        kernel_name="lowbit_attention",
    )(*named.values(), *table)
    return out[:, :, :n, :e], lse[:, :, :n] + xla.lost(spec, ready.shift)


def _fitting(precision: Precision, n: int, d: int, e: int) -> tuple[int, int]:
    """Return how many warpgroups compute, and how many visits' keys are held: two at least.

    Tensor memory has 512 columns, shared memory the queries and a part of the results.
    """
    form, wide = precision.qk, 1 if precision.pv else 2
    d, e = up(d, WIDTH if form.block is None else DEPTH), up(e, WIDTH)
    own = 4 if form.block is None else 0
    lines = 0 if form.block is None else d // form.block * ROWS

    def stages(workers: int) -> int:
        mine = d * form.bits // 8 + WIDTH * 2 + 4 + (COLUMNS if precision.pv else 0)
        room = hopper.MEMORY - RESERVED - workers * (ROWS * mine + lines)
        return min(STAGES, room // (COLUMNS * (d * form.bits // 8 + e * wide + own) + lines))

    both = stages(2) > 1 and e <= 128 and n > ROWS
    return (2, stages(2)) if both else (1, stages(1))


def with_scales(
    spec: LowBit, given: Operands, sizes: Sizes, named: dict[str, Array], interpret: bool
) -> dict[str, Array]:
    """Return the kernel's arrays, of which queries and keys are in blocks, with their scales.

    Interpret mode has no products with scales: there elements are what they are widened to.
    """
    form, smooth = spec.precision.qk, smoothed(spec.precision, given.q, given.k)
    found, outer = dict(named), []
    for name, x, rows in (("q", smooth.q, ROWS), ("k", smooth.k, COLUMNS)):
        whole = in_blocks(filled(x, 3, form.block or 1), form, -1)
        elements = named[name] if interpret else whole.elements
        found[name] = filled_up(elements, {2: named[name].shape[2], 3: DEPTH})
        height, depth = found[name].shape[2:]
        scales = filled_up(whole.scales, {2: height}, 1.0)
        tiles = scales.reshape(-1, rows, scales.shape[3])
        ready = scales_ready(tiles, whole.block, depth)
        found[f"{name} lines"] = ready.reshape(*scales.shape[:2], height // rows, *ready.shape[2:])
        outer.append(whole.outer)
    del found["k scale"]
    if outer[0] is None:
        del found["q scale"]
    else:
        both = outer[0] * jnp.repeat(outer[1], given.q.shape[1] // given.k.shape[1], axis=1)
        shape = (*both.shape, found["q"].shape[2])
        found["q scale"] = jnp.broadcast_to(both[..., None], shape)
    return found


def _scratch(
    named: dict[str, Array], precision: Precision, workers: int, stages: int, result: Any
) -> dict[str, Any]:
    """Return what a block of threads holds, by name; for each computing warpgroup its own."""
    (width, dtype), form = result, precision.qk
    (q, v), d = (named[name].dtype for name in "qv"), named["q"].shape[3]
    exact = jnp.int32 if form.whole else jnp.float32
    weights = [plgpu.TMEM((ROWS, COLUMNS), v, packed=True)] * workers
    low = precision.pv is not None
    tensor = plgpu.Barrier(num_barriers=workers, orders_tensor_core=True)
    free = plgpu.Barrier(num_arrivals=workers, num_barriers=stages)
    found = dict(
        q=hopper.block((workers, ROWS, d), q),
        k=hopper.block((stages, COLUMNS, d), q),
        v=hopper.block((stages, width, COLUMNS) if low else (stages, COLUMNS, width), v),
        scales=plgpu.SMEM((stages, COLUMNS), jnp.float32),
        weights=hopper.block((workers, ROWS, COLUMNS), v) if low else weights,
        result=hopper.block((workers, ROWS, WIDTH), dtype),
        sums=plgpu.SMEM((workers, ROWS), jnp.float32),
        logits=[plgpu.TMEM((ROWS, COLUMNS), exact)] * workers,
        means=[plgpu.TMEM((ROWS, width), jnp.float32)] * workers,
        here=plgpu.Barrier(num_barriers=workers),
        k_full=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        v_full=plgpu.Barrier(num_barriers=stages),
        k_free=free,
        v_free=free,
        multiplied=tensor,
        summed=tensor,
    )
    if form.block is not None:
        scale, count = named["q lines"].dtype, d // form.block
        layout: Any = plgpu.TMEMLayout.SCALES_LAYOUT()
        own = [plgpu.TMEM((ROWS, count), scale, layout=layout)] * workers
        found |= dict(
            q_lines=plgpu.SMEM((workers, 1, count // 4, 32, LINE), scale),
            scales=plgpu.SMEM((stages, 1, count // 4, 32, LINE), scale),
            q_scales=own,
            k_scales=own,
            here=plgpu.Barrier(num_arrivals=2, num_barriers=workers),
        )
    return found


def _kernel(
    spec: LowBit, sizes: Sizes, names: list[str], shared: int, interpret: bool, *refs: Any,
    **scratch: Any,
) -> None:  # fmt: skip
    """Attend from a block of rows."""
    held = SimpleNamespace(**scratch)
    inputs = dict(zip(names, refs, strict=False))
    ends, visits, *outputs = refs[len(names) :]
    head, turn, batch = (lax.axis_index(name) for name in ("heads", "lines", "batch"))
    me, workers = lax.axis_index("wg"), held.q.shape[0]
    group = lax.div(head, jnp.asarray(shared, head.dtype))
    own = of(ends, batch)
    line, begin, middle, end = (ends[own, turn, x] for x in range(4))

    def compute(number: int) -> None:
        """Attend from a warpgroup's rows."""
        plgpu.set_max_registers(hopper.COMPUTING, action="increase")
        first = line * sizes.rows + number * ROWS
        rows = _Rows(
            spec, sizes, inputs, (batch, head, group), (first, number), (begin, end), held,
            interpret,
        )  # fmt: skip
        carry = rows.begin()

        def visit(masked: bool, step: Any, carry: Any) -> Any:
            return rows.visit(step, visits[own, step] * sizes.columns, masked, carry)

        carry = lax.fori_loop(begin, middle, partial(visit, False), carry)
        if rows.finish.mixes:
            carry = lax.fori_loop(middle, end, partial(visit, True), carry)
        rows.write(*carry, *outputs)

    for number in range(workers):
        pl.when(me == number)(partial(compute, number))

    @pl.when(me == workers)
    def streamed() -> None:
        rings = ("k", held.k, held.k_full, held.k_free), ("v", held.v, held.v_full, held.v_free)
        bring(inputs, rings, held.scales, (batch, group), visits.at[own], (begin, end))


class _Rows:
    """A warpgroup's rows: their products with the keys of visits, and their sums."""

    def __init__(
        self, spec: LowBit, sizes: Sizes, inputs: dict[str, Any], at: Any, place: Any, ends: Any,
        held: Any, interpret: bool,
    ):  # fmt: skip
        batch, head, self.group = at
        self.spec, self.inputs, self.at, self.held = spec, inputs, (batch, head), held
        (self.first, number), self.ends = place, ends
        self.part, self.number = pl.ds(self.first, ROWS), number
        self.logits, self.mean = held.logits[number], held.means[number]
        self.low = spec.precision.pv is not None
        self.weights = held.weights.at[number] if self.low else held.weights[number]
        self.multiplied, self.summed = held.multiplied.at[number], held.summed.at[number]
        self.in_blocks = spec.precision.qk.block is not None
        self.scaled = self.in_blocks and not interpret
        self.finish = Finish(spec.asked, sizes.m, sizes.columns, inputs, batch, head, layout=MATRIX)

    def begin(self) -> tuple[Any, Any]:
        """Bring the queries, and begin with the first visit; return its carry."""
        held, number, own = self.held, self.number, of(self.inputs["q"], self.at[0])
        here = held.here.at[number]
        rows = self.inputs["q"].at[own, self.at[1], self.part]
        plgpu.copy_gmem_to_smem(rows, held.q.at[number], here)
        if self.in_blocks:
            tile = pl.ds(lax.div(self.first, jnp.asarray(ROWS, self.first.dtype)), 1)
            scales = self.inputs["q lines"].at[own, self.at[1], tile]
            plgpu.copy_gmem_to_smem(scales, held.q_lines.at[number], here)
        rows = partial(of_block, self.inputs, self.at, self.part, layout=DOWN)
        self.factor = rows("q scale") if "q scale" in self.inputs else None
        self.shift = rows("shift") if "shift" in self.inputs else None
        carry = begun(self.spec, self.inputs, self.at, self.shift, ROWS, DOWN)
        plgpu.barrier_wait(here)
        if self.scaled:
            plgpu.async_copy_scales_to_tmem(held.q_lines.at[number], held.q_scales[number])
        begin, end = self.ends
        pl.when(begin < end)(partial(self.multiply, begin))
        return carry

    def slot(self, step: Any) -> Any:
        """Return where a visit's keys and values lie."""
        return hopper.slot(step - self.ends[0], self.held.k.shape[0])

    def multiply(self, step: Any) -> None:
        """Begin the products with a visit's keys."""
        held, number, slot, options = self.held, self.number, self.slot(step), {}
        plgpu.barrier_wait(held.k_full.at[slot])
        if self.scaled:
            options = dict(a_scale=held.q_scales[number], b_scale=held.k_scales[number])
            plgpu.async_copy_scales_to_tmem(held.scales.at[slot], options["b_scale"])
        keys = held.k.at[slot].transpose((1, 0))
        plgpu.tcgen05_mma(
            self.logits, held.q.at[number], keys, self.multiplied, accumulate=False, **options
        )

    def products(self, step: Any) -> Any:
        """Return a visit's products in float32, with all factors, and begin with the next one's."""
        slot = self.slot(step)
        plgpu.barrier_wait(self.multiplied)
        s = plgpu.async_load_tmem(self.logits, layout=MATRIX)
        columns = None
        if not self.in_blocks:
            columns = plgpu.load(self.held.scales.at[slot], layout=ACROSS, optimized=False)
            plgpu.commit_smem()  # they are read before they are overwritten
        plgpu.barrier_arrive(self.held.k_free.at[slot])
        plgpu.wait_load_tmem()
        pl.when(step + 1 < self.ends[1])(partial(self.multiply, step + 1))
        s = s.astype(jnp.float32)
        if self.factor is not None:
            s = s * rows_of(self.factor, s.shape)
        if columns is not None:
            s = s * columns_of(columns, s.shape)
        if self.shift is not None and self.spec.asked.soft_cap is not None:
            s = s + rows_of(self.shift, s.shape)
        return s

    def visit(self, step: Any, place: Any, masked: bool, carry: Any) -> Any:
        """Attend to the keys of a visit, of which ``place`` is the first."""
        (top, total), slot, precision = carry, self.slot(step), self.spec.precision
        values = self.held.v.at[slot]
        found = self.finish(self.products(step), (self.first, place), masked)
        high = jnp.max(found.s, axis=1) * found.factor
        new = jnp.maximum(top, ceil(high) if precision.exponents else high)
        least = rows_of(new - precision.log2_peak, found.s.shape)
        p = jnp.exp2(found.s * found.factor - least).astype(values.dtype)
        fall = jnp.exp2(top - new)
        total = total * fall + jnp.sum(p.astype(jnp.float32), axis=1)
        pl.when(step > self.ends[0])(partial(self.lower, step - 1, fall))
        if self.low:
            self.weights[...] = p
            plgpu.commit_smem()
            values = values.transpose((1, 0))
        else:
            plgpu.async_store_tmem(self.weights, p)
        plgpu.commit_tmem()
        plgpu.barrier_wait(self.held.v_full.at[slot])
        again = step > self.ends[0]
        plgpu.tcgen05_mma(self.mean, self.weights, values, self.summed, accumulate=again)
        return new, total

    def close(self, step: Any) -> None:
        """Wait for the sums of a visit."""
        plgpu.barrier_wait(self.summed)
        plgpu.barrier_arrive(self.held.v_free.at[self.slot(step)])

    def lower(self, step: Any, fall: Any) -> None:
        """Have sums up to a visit be relative to a higher logit."""
        self.close(step)
        for x in range(0, self.mean.shape[1], WIDTH):
            some = self.mean.at[:, pl.ds(x, WIDTH)]
            before = plgpu.async_load_tmem(some, layout=MATRIX)
            plgpu.wait_load_tmem()
            plgpu.async_store_tmem(some, before * rows_of(fall, before.shape))

    def write(self, top: Any, total: Any, out: Any, lse: Any) -> None:
        """Write outputs and logarithms of sums."""
        (begin, end), number = self.ends, self.number
        pl.when(begin < end)(lambda: self.close(end - 1))
        there = total > 0
        safe = jnp.where(there, total, 1.0)
        share = jnp.where(there, 1 / safe, 0.0)
        to = self.held.result.at[number]
        for x in range(0, self.mean.shape[1], WIDTH):
            part = pl.ds(x, WIDTH)
            some = plgpu.async_load_tmem(self.mean.at[:, part], layout=MATRIX)
            plgpu.wait_load_tmem()
            seen = rows_of(there, some.shape)  # where nothing is, sums were never begun
            some = jnp.where(seen, some * rows_of(share, some.shape), 0.0)
            if self.low:
                at = self.at[0], self.group
                scale = of_block(self.inputs, at, part, "v scale", layout=ACROSS)
                some = some * columns_of(scale, some.shape)
            plgpu.wait_smem_to_gmem(0)
            to[...] = some.astype(to.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(to, out.at[(*self.at, self.part, part)])
        peak = self.spec.precision.log2_peak
        self.held.sums[number] = jnp.where(there, (top + jnp.log2(safe) - peak) / LOG2E, -jnp.inf)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(self.held.sums.at[number], lse.at[(*self.at, self.part)])
        plgpu.wait_smem_to_gmem(0)
