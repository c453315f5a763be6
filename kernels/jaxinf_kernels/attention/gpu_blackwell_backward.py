"""Attention's gradients on Blackwell's tensor cores: two passes, and the same numbers every time.

One pass has a line of queries in a block of threads and adds up their gradients over the keys; the
other has a line of keys, transposed, and adds up those of keys and values over the queries of all
heads that read them. Nothing is added up across blocks of threads.

One kernel serves both. Down lies what a block of threads holds: queries and d_out, or keys and
values; across come the other two, block by block. The product of the first of each is scores, that
of the second the weights' cotangents. What is computed of these goes to tensor memory as the left
operand of the products that are added up there: of scores' cotangents with what comes first, of
weights with what comes second. While a visit's are under way, the next one's begin.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxinf_kernels import hopper
from jaxinf_kernels.attention.gpu_blocks import (
    RESERVED,
    WIDTH,
    Finish,
    bring,
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
from jaxinf_kernels.blackwell import ACROSS, DOWN, MATRIX, ROWS
from jaxinf_kernels.hopper import columns_of, rows_of
from jaxinf_kernels.tiles import up

TENSOR = 512
"""Columns of tensor memory."""
PART = 32
"""Columns of scores that registers hold at a time, with all that is computed of them."""


class Pass(NamedTuple):
    """What a pass goes over, and in which sizes."""

    held: tuple[str, str]
    """Arrays that lie down."""
    streamed: tuple[str, str]
    """Arrays that come across."""
    want: tuple[str, ...]
    """Those of ``held`` of which cotangents are added up."""
    workers: int = 0
    """Warpgroups that compute, each with ``ROWS`` of what is held."""
    columns: int = 0
    """Rows of a block of what is streamed: columns of scores."""
    stages: int = 0
    """Blocks of what is streamed on their way or in use."""

    @property
    def down(self) -> int:
        """The axis of queries: 1 where scores are transposed."""
        return int(self.held[0] != "q")

    @property
    def wants(self) -> tuple[bool, bool]:
        """Whether scores' cotangents are multiplied, and whether weights are."""
        return self.held[0] in self.want, self.held[1] in self.want

    def fitting(self, length: int, widths: tuple[int, int], itemsize: int) -> "Pass | None":
        """Return it with sizes that tensor memory and shared memory have room for, if there are."""
        first, second = self.wants
        sums = first * widths[0] + second * widths[1]
        lines = 2 * self.down * 4  # bytes of numbers that come with a row
        for workers, columns in ((2, 64), (1, 64), (1, 32)):
            half = columns // 2  # an operand has two numbers in a column of tensor memory
            tensor = sums + columns + first * (columns + half) + second * half
            room = hopper.MEMORY - RESERVED - workers * ROWS * sum(widths) * itemsize
            stages = min(4, room // (columns * (sum(widths) * itemsize + lines)))
            needed = length > (workers - 1) * ROWS
            if needed and workers * tensor <= TENSOR and stages > 1:
                return self._replace(workers=workers, columns=columns, stages=stages)
        return None


def pull(
    spec: Problem, given: Operands, outputs: tuple[Array, Array], cotangents: tuple[Array, Array],
    interpret: Any = False,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Return the cotangents of q, k and v, and the products [B, H, N] of outputs and cotangents.

    Args:
      spec: the problem.
      given: its arrays.
      outputs: out [B, H, N, E] and lse [B, H, N].
      cotangents: of these.
      interpret: as ``plgpu.kernel`` takes it.
    """
    widths = up(given.q.shape[3], WIDTH), up(given.v.shape[3], WIDTH)
    queries, keys = ("q", "d_out"), ("k", "v")
    n, m, itemsize = given.q.shape[2], given.k.shape[2], given.q.dtype.itemsize
    rest, found = of_outputs(outputs, cotangents), {}
    both = Pass(keys, queries, keys).fitting(m, widths, itemsize) is not None
    plans = [Pass(queries, keys, ("q",))]
    plans += [Pass(keys, queries, want) for want in ([keys] if both else [("k",), ("v",)])]
    for plan in plans:
        sized = plan.fitting(m if plan.down else n, widths, itemsize)
        assert sized is not None, widths  # heads up to gpu_blocks.LARGEST have room
        found |= _passed(spec, given, rest, sized, interpret)
    return found["q"], found["k"], found["v"], rest[2]


def _passed(
    spec: Problem, given: Operands, rest: tuple[Array, Array, Array], plan: Pass, interpret: Any
) -> dict[str, Array]:
    """Return the cotangents that a pass adds up."""
    (_, heads, n, _), (_, groups, m, _) = given.q.shape, given.k.shape
    workers, columns, stages = plan[-3:]
    height = workers * ROWS
    sizes = Sizes(n, m, columns, height) if plan.down else Sizes(n, m, height, columns)
    arrays, names = padded_back(spec, given, rest, sizes)
    filled = flipped(arrays, names, spec) if plan.down else arrays
    table = lines(spec, given, sizes, by_rows=not plan.down)
    shapes = {name: a.shape for name, a in zip(names, filled, strict=True)}
    widths, dtype = [shapes[name][3] for name in plan.held], given.q.dtype
    (_, many, length, _), batch = shapes[plan.held[0]], rest[0].shape[0]
    block = partial(hopper.block, dtype=dtype, most=min(128, columns * dtype.itemsize))
    first, second = plan.wants
    wide = {name: w for name, w in zip(plan.held, widths, strict=True) if name in plan.want}
    done = plgpu.Barrier(num_barriers=workers, orders_tensor_core=True)
    cells = plgpu.TMEM((ROWS, columns), jnp.float32)
    operand = plgpu.TMEM((ROWS, columns), dtype, packed=True)
    tensor: dict[str, Any] = dict(
        scores=cells,
        d_weights=cells if first else None,
        d_scores=operand if first else None,
        weight=operand if second else None,
        sums=[plgpu.TMEM((ROWS, w), jnp.float32) for w in wide.values()],
    )
    out = plgpu.kernel(
        partial(_kernel, spec, sizes, plan, names, heads // groups),
        out_type=[jax.ShapeDtypeStruct((batch, many, length, w), dtype) for w in wide.values()],
        grid=(many, table.ends.shape[1], batch),
        grid_names=("many", "lines", "batch"),
        num_threads=workers + 1,
        thread_name="wg",
        scratch_types=dict(
            held=[block((workers, ROWS, w)) for w in widths],
            streamed=[block((stages, columns, w)) for w in widths],
            statistics=[plgpu.SMEM((stages, columns), jnp.float32)] * (2 * plan.down),
            tensor=[tensor] * workers,
            full=plgpu.Barrier(num_arrivals=2 + 2 * plan.down, num_barriers=stages),
            free=plgpu.Barrier(num_arrivals=workers, num_barriers=stages),
            here=plgpu.Barrier(num_arrivals=2, num_barriers=workers),
            scored=done,
            weighed=done,
            summed=done,
        ),
        compiler_params=hopper.PARAMS,
        interpret=interpret or None,
    )(*filled, *table)
    kept = {"q": (n, given.q.shape[3]), "k": (m, given.k.shape[3]), "v": (m, given.v.shape[3])}
    return {x: a[:, :, : kept[x][0], : kept[x][1]] for x, a in zip(wide, out, strict=True)}


def _kernel(
    spec: Problem, sizes: Sizes, plan: Pass, names: list[str], shared: int, *refs: Any, held: Any,
    streamed: Any, statistics: Any, tensor: Any, full: Any, free: Any, **barriers: Any,
) -> None:  # fmt: skip
    """Add up the cotangents of a block of what is held."""
    inputs = dict(zip(names, refs, strict=False))
    ends, visits, *outs = refs[len(names) :]
    number, turn, batch = (lax.axis_index(name) for name in ("many", "lines", "batch"))
    own, me = of(ends, batch), lax.axis_index("wg")
    line, begin, middle, end = (ends[own, turn, x] for x in range(4))
    members, places = shared if plan.down else 1, visits.at[own]

    def compute(worker: int) -> None:
        mine = {name: barrier.at[worker] for name, barrier in barriers.items()}
        place = (batch, number, (line * plan.workers + worker) * ROWS)
        _Warpgroup(
            spec, sizes, plan, inputs, place, (begin, middle, end, members), places,
            held=[a.at[worker] for a in held], streamed=streamed, statistics=statistics, full=full,
            free=free, **tensor[worker], **mine,
        ).run(outs)  # fmt: skip

    for worker in range(plan.workers):
        pl.when(me == worker)(partial(compute, worker))

    @pl.when(me == plan.workers)
    def stream() -> None:
        (name, second), (to, to_second) = plan.streamed, streamed
        more = zip(("lse", "delta"), statistics, strict=False)
        ring = name, to, full, free, (second, to_second), *more
        first = number * shared if plan.down else lax.div(number, jnp.asarray(shared, number.dtype))
        bring(inputs, (ring,), (batch, first), places, begin, end, members)


class _Warpgroup:
    """What a warpgroup does that computes."""

    def __init__(
        self, spec: Problem, sizes: Sizes, plan: Pass, inputs: dict[str, Any],
        place: tuple[Any, Any, Any], bounds: tuple[Any, Any, Any, int], places: Any, *, held: Any,
        streamed: Any, statistics: Any, scores: Any, d_weights: Any, d_scores: Any, weight: Any,
        sums: Any, here: Any, full: Any, free: Any, scored: Any, weighed: Any, summed: Any,
    ):  # fmt: skip
        self.spec, self.sizes, self.plan, self.inputs = spec, sizes, plan, inputs
        self.batch, self.number, self.first = place
        self.begin, self.middle, self.end, self.members = bounds
        self.places, self.held, self.streamed, self.statistics = places, held, streamed, statistics
        self.scores, self.d_weights, self.sums = scores, d_weights, sums
        self.d_scores, self.weight = d_scores, weight
        self.here, self.full, self.free = here, full, free
        self.scored, self.weighed, self.summed = scored, weighed, summed
        self.total = (self.end - self.begin) * self.members  # how many visits there are
        self.rows = pl.ds(self.first, ROWS)

    def run(self, outs: Any) -> None:
        """Add up and write."""
        plgpu.set_max_registers(hopper.COMPUTING, action="increase")
        for name, to in zip(self.plan.held, self.held, strict=True):
            ref = self.inputs[name]
            source = ref.at[of(ref, self.batch), self.number, self.rows]
            plgpu.copy_gmem_to_smem(source, to, self.here)
        self.own = ()
        if not self.plan.down:  # the statistics of rows that are held
            refs = (self.inputs[name].at[self.batch, self.number] for name in ("lse", "delta"))
            self.own = [plgpu.load(a.at[self.rows], layout=DOWN, optimized=False) for a in refs]
        plgpu.barrier_wait(self.here)
        pl.when(self.total > 0)(partial(self.score, 0))
        if self.plan.wants[0]:
            pl.when(self.total > 0)(partial(self.weigh, 0))

        def one(member: Any, _: None) -> None:
            lax.fori_loop(self.begin, self.middle, partial(self.visit, False, member), None)
            if self.finish(0).mixes:
                lax.fori_loop(self.middle, self.end, partial(self.visit, True, member), None)

        if self.members == 1:
            one(0, None)
        else:
            lax.fori_loop(0, self.members, one, None)
        pl.when(self.total > 0)(partial(self.close, self.total - 1))
        self.write(outs)

    def finish(self, member: Any) -> Finish:
        """Return what makes logits of a head's scores."""
        head = self.number if not self.plan.down else self.number * self.members + member
        return Finish(
            self.spec, self.sizes.m, self.sizes.columns, self.inputs, self.batch, head,
            self.plan.down, MATRIX,
        )  # fmt: skip

    def slot(self, count: Any) -> Any:
        """Return where the blocks of a visit lie."""
        return hopper.slot(jnp.asarray(count, jnp.int32), self.plan.stages)

    def score(self, count: Any) -> None:
        """Begin a visit's products of queries and keys, as soon as its blocks are here."""
        slot = self.slot(count)
        plgpu.barrier_wait(self.full.at[slot])
        across = self.streamed[0].at[slot].transpose((1, 0))
        plgpu.tcgen05_mma(self.scores, self.held[0], across, self.scored, accumulate=False)

    def weigh(self, count: Any) -> None:
        """Begin a visit's cotangents of weights; its scores were begun before."""
        across = self.streamed[1].at[self.slot(count)].transpose((1, 0))
        plgpu.tcgen05_mma(self.d_weights, self.held[1], across, self.weighed, accumulate=False)

    def close(self, count: Any) -> None:
        """Wait for the sums of a visit: its blocks may be overwritten, and its operands."""
        plgpu.barrier_wait(self.summed)
        plgpu.barrier_arrive(self.free.at[self.slot(count)])

    def visit(self, masked: bool, member: Any, step: Any, _: None) -> None:
        """Add up what a block across gives."""
        count = member * (self.end - self.begin) + step - self.begin
        slot, more = self.slot(count), count + 1 < self.total
        early = self.plan.stages > 2  # with two blocks, one is first freed below
        parts = range(0, self.plan.columns, PART)
        plgpu.barrier_wait(self.scored)
        found = [
            plgpu.async_load_tmem(self.scores.at[:, pl.ds(x, PART)], layout=MATRIX) for x in parts
        ]
        plgpu.wait_load_tmem()
        if early:
            pl.when(more)(partial(self.score, count + 1))
        finish, across = self.finish(member), self.places[step] * self.plan.columns
        for x, s in zip(parts, found, strict=True):
            first = (across + x, self.first) if self.plan.down else (self.first, across + x)
            self.part(x, finish(s, first, masked), count, slot)
        plgpu.commit_tmem()
        plgpu.commit_smem()  # statistics were read, and TMA may overwrite them
        if not early:
            pl.when(more)(partial(self.score, count + 1))
        if self.plan.wants[0]:
            pl.when(more)(partial(self.weigh, count + 1))
        operands = zip((self.d_scores, self.weight), self.streamed, strict=True)
        terms = [pair for on, pair in zip(self.plan.wants, operands, strict=True) if on]
        for total, (left, right) in zip(self.sums, terms, strict=True):
            plgpu.tcgen05_mma(total, left, right.at[slot], accumulate=count > 0)
        plgpu.tcgen05_commit_arrive(self.summed)

    def part(self, x: int, scores: Any, count: Any, slot: Any) -> None:
        """Compute the operands of sums from scores that begin at column ``x``."""
        steeps, multiplied = self.plan.wants
        shape, dtype, some = scores.s.shape, self.streamed[0].dtype, pl.ds(x, PART)

        def spread(number: int) -> Any:
            """Return a statistic over the cells."""
            if not self.plan.down:
                return rows_of(self.own[number], shape)
            row = plgpu.load(self.statistics[number].at[slot, some], layout=ACROSS)
            return columns_of(row, shape)

        p = weights(scores, spread(0))
        if not x:
            pl.when(count > 0)(partial(self.close, count - 1))
        if multiplied:
            plgpu.async_store_tmem(self.weight.at[:, some], p.astype(dtype))
        if steeps:
            if not x:
                plgpu.barrier_wait(self.weighed)
            d_p = plgpu.async_load_tmem(self.d_weights.at[:, some], layout=MATRIX)
            plgpu.wait_load_tmem()
            d_s = steep(scores, p, d_p, spread(1))
            plgpu.async_store_tmem(self.d_scores.at[:, some], d_s.astype(dtype))

    def write(self, outs: Any) -> None:
        """Write sums by way of the memory of what was held, which all products have read."""
        wanted = [x for x, on in enumerate(self.plan.wants) if on]
        for x, total, out in zip(wanted, self.sums, outs, strict=True):
            to, factor = self.held[x], 1.0 if x else self.spec.scale
            for y in range(0, total.shape[1], WIDTH):
                some = plgpu.async_load_tmem(total.at[:, pl.ds(y, WIDTH)], layout=MATRIX)
                plgpu.wait_load_tmem()
                begun = jnp.broadcast_to(self.total > 0, some.shape)
                some = jnp.where(begun, some * factor, 0.0)  # memory holds anything before
                to.at[:, pl.ds(y, WIDTH)][...] = some.astype(to.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(to, out.at[self.batch, self.number, self.rows])
        plgpu.wait_smem_to_gmem(0)
