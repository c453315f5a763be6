"""Which blocks a GPU's kernels of attention visit, and what they add to and take from products.

A block of threads has one line: a block of rows with the columns that it sees, or of columns with
the rows that see it. A line's visits are put in order before: first those of blocks that are full,
then those of mixed ones, so that a kernel has a loop without and one with a mask.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxinf_kernels import hopper
from jaxinf_kernels.attention.cotangents import delta_of
from jaxinf_kernels.attention.masks import COLUMN, EMPTY, FULL, MIXED, ROW, SCALAR
from jaxinf_kernels.attention.problem import Operands, Problem
from jaxinf_kernels.attention.schedule import Schedule, Sizes, at_run_time, edged, schedule
from jaxinf_kernels.tiles import filled_up, up

LOWEST = -0.35 * float(np.finfo(np.float32).max)
"""Where running maxima start from; what is not seen has minus infinity."""
LOG2E = float(np.log2(np.e))
WIDTH = 64
"""What head dimensions are filled up to a multiple of."""
RESERVED = 4096
"""Bytes of shared memory for barriers and what is small."""
LARGEST = 256
"""Head dimension up to which a block of threads holds its queries."""


class Blocks(NamedTuple):
    """How the kernels go about; 0 stands for what fits the head dimensions."""

    rows: int = 128
    """Queries of a block of threads, 64 for each computing warpgroup; in the pass of keys' and
    values' gradients, keys."""
    columns: int = 0
    """Keys in a block of memory."""
    stages: int = 0
    """Blocks of memory on their way or in use."""
    back_columns: int = 0
    """As ``columns``, of the gradients' passes."""
    back_stages: int = 0
    """As ``stages``, of the gradients' passes."""

    def fitting(self, widths: list[int], itemsize: int) -> "Blocks":
        """Return sizes for head dimensions that are filled up."""
        d, e = widths
        line = (d + e) * itemsize
        columns = self.columns or (128 if max(d, e) <= 128 else 64)
        room = hopper.MEMORY - RESERVED - self.rows * (d + e * (e != d)) * itemsize
        stages = self.stages or max(1, min(4, room // (line * columns)))
        room = hopper.MEMORY - RESERVED - self.rows * line
        back = self.back_columns or (64 if max(d, e) <= 192 else 32)
        back_stages = self.back_stages or max(1, min(4, room // (line * back)))
        return Blocks(self.rows, columns, stages, back, back_stages)


class Lines(NamedTuple):
    """What kernels read of a schedule."""

    ends: Any
    """[B or 1, lines, 4]: a line's number, and where in ``places`` its full blocks begin, its mixed
    blocks begin and end. Lines with many visits are in front, so that they are begun first."""
    places: Any
    """[B or 1, T]: the numbers of the blocks that are visited."""


def lines(spec: Problem, given: Operands, sizes: Sizes, by_rows: bool) -> Lines:
    """Put the visits of blocks that are not empty in order."""
    plan = schedule(spec, sizes, by_rows)
    if given.leaves:
        return _ordered(plan, by_rows, at_run_time(spec, given.leaves, plan, sizes), jnp)
    return _ordered(plan, by_rows, plan.kinds[None], np)


def _ordered(plan: Schedule, by_rows: bool, kinds: Any, xp: Any) -> Lines:
    """Return the lines, by NumPy where kinds are known and by JAX where leaves say them."""
    line, place = (plan.rows, plan.columns) if by_rows else (plan.columns, plan.rows)
    size = np.bincount(line)
    begin = np.cumsum(size) - size
    busy = np.bincount(line, (plan.kinds & 3) != EMPTY)
    turns = np.argsort(-busy, kind="stable")
    order = xp.argsort(line[None] * 3 + FULL - (kinds & 3), axis=1, stable=True)

    def count(kind: int) -> Any:
        """How many blocks of a kind a line has."""
        sums = xp.pad(xp.cumsum((kinds & 3) == kind, axis=1), ((0, 0), (1, 0)))
        return sums[:, begin + size] - sums[:, begin]

    full = begin[None] + count(FULL)
    mixed = full + count(MIXED)
    ends = [np.broadcast_to(a[None], full.shape) for a in (np.arange(len(size)), begin)]
    ends = xp.stack([*ends, full, mixed], axis=2)[:, turns]
    places = xp.asarray(place)[order]
    return Lines(jnp.asarray(ends, jnp.int32), jnp.asarray(places, jnp.int32))


def padded(spec: Problem, given: Operands, rows: int, columns: int) -> tuple[list[Any], list[str]]:
    """Fill rows, columns and head dimensions up to whole blocks; return arrays and their names."""
    kinds = {ROW: {1: rows}, COLUMN: {1: columns}, SCALAR: {}}
    leaves = [
        filled_up(a.astype(jnp.int32), kinds[kind])
        if kind in kinds
        else filled_up(a.astype(jnp.int8), {1: rows, 2: columns})
        for a, kind in zip(given.leaves, spec.kinds, strict=True)
    ]
    q = filled_up(given.q, {2: rows, 3: WIDTH})
    k, v = (filled_up(a, {2: columns, 3: WIDTH}) for a in (given.k, given.v))
    arrays, names = [q, k, v], ["q", "k", "v"]
    if given.bias is not None:
        arrays.append(filled_up(given.bias, {2: rows, 3: columns}))
        names.append("bias")
    for name, a in (("slopes", given.slopes), ("sinks", given.sinks)):
        if a is not None:
            arrays.append(a.astype(jnp.float32))
            names.append(name)
    return [*arrays, *leaves], [*names, *[f"mask {x}" for x in range(len(leaves))]]


def padded_back(
    spec: Problem, given: Operands, rest: tuple[Any, Any, Any], sizes: Sizes
) -> tuple[list[Any], list[str]]:
    """Return as :func:`padded`, with what :func:`of_outputs` returns."""
    arrays, names = padded(spec, given, sizes.rows, sizes.columns)
    d_out, lse, delta = rest
    lse = filled_up(lse, {2: sizes.rows}, -LOWEST)
    d_out, delta = filled_up(d_out, {2: sizes.rows, 3: WIDTH}), filled_up(delta, {2: sizes.rows})
    return [*arrays, d_out, lse, delta], [*names, "d_out", "lse", "delta"]


def of_outputs(outputs: tuple[Any, Any], cotangents: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    """Return what the gradients' passes read of outputs: d_out, lse in units of log 2, delta."""
    lse = outputs[1]
    lse = jnp.where(jnp.isfinite(lse), lse * LOG2E, -LOWEST)  # nothing seen: no weight
    return cotangents[0], lse, delta_of(outputs, cotangents)


def flipped(arrays: list[Any], names: list[str], spec: Problem) -> list[Any]:
    """Return arrays with the cells' columns down."""
    cells = {
        f"mask {x}" for x, kind in enumerate(spec.kinds) if kind not in (ROW, COLUMN, SCALAR)
    } | {"bias"}
    return [
        jnp.swapaxes(a, -1, -2) if name in cells else a
        for a, name in zip(arrays, names, strict=True)
    ]


def of(ref: Any, number: Any) -> Any:
    """Return an example's own, or what serves all of the batch (or all heads)."""
    return number if ref.shape[0] > 1 else 0


class Scores(NamedTuple):
    """Logits as a kernel has them."""

    s: Any
    """Minus infinity where nothing is seen."""
    factor: float
    """By which they are in units of log 2."""
    bend: Any
    """The derivative of the soft cap; None without one."""


def unit(spec: Problem) -> float:
    """Return the factor of products that are masked as they are; 0 where they must be finished."""
    special = spec.soft_cap is not None or any(spec.given[:2])
    return 0.0 if special or spec.scale <= 0 else spec.scale * LOG2E


def weights(scores: Scores, lse: Any) -> Any:
    """Return the softmax of logits, from the logarithms of its sums."""
    return jnp.exp2(scores.s * scores.factor - lse)


def steep(scores: Scores, p: Any, d_p: Any, delta: Any) -> Any:
    """Return the cotangent of products before their scale."""
    d_s = p * (d_p - delta)
    return d_s if scores.bend is None else d_s * scores.bend


class Finish:
    """Products of a block become logits: capped, biased and masked."""

    def __init__(
        self, spec: Problem, m: int, columns: int, refs: dict[str, Any], batch: Any, head: Any,
        down: int = 0, layout: Any = hopper.MATRIX,
    ):  # fmt: skip
        self.layout = layout
        self.spec, self.refs, self.batch, self.head, self.down = spec, refs, batch, head, down
        self.edge = partial(edged, spec, m, columns)

    @property
    def mixes(self) -> bool:
        """Whether there are mixed blocks."""
        return self.edge() is not None

    def __call__(self, products: Any, first: tuple[Any, Any], masked: bool) -> Scores:
        """Return the logits of a block; ``first`` are its first row and column."""
        spec, shape = self.spec, products.shape
        i = hopper.numbered(shape, self.down, first[0], self.layout)
        j = hopper.numbered(shape, 1 - self.down, first[1], self.layout)
        s, factor, bend = products, unit(spec), None
        if not factor:
            s = s * spec.scale
            if spec.soft_cap is not None:
                t = tanh(s / spec.soft_cap)
                s, bend = spec.soft_cap * t, 1 - t * t
            if "bias" in self.refs:
                ref = self.refs["bias"]
                at = of(ref, self.batch), self.head if ref.shape[1] > 1 else 0
                s = s + self._cells(ref, at, first, shape).astype(jnp.float32)
            if "slopes" in self.refs:
                slope = self.refs["slopes"][of(self.refs["slopes"], self.batch), self.head]
                s = s - slope * jnp.abs(i - j).astype(jnp.float32)
            s, factor = s * LOG2E, 1.0
        if masked:
            mask = self.edge([self._leaf(x, first, shape) for x in range(len(spec.kinds))])
            if mask is not None:
                s = jnp.where(mask.sees(i, j), s, -jnp.inf)
        return Scores(s, factor, bend)

    def _leaf(self, number: int, first: tuple[Any, Any], shape: tuple[int, int]) -> Any:
        """Return a leaf of the mask where a block is."""
        ref, kind = self.refs[f"mask {number}"], self.spec.kinds[number]
        own = of(ref, self.batch)
        if kind == SCALAR:
            return ref[own]
        if kind not in (ROW, COLUMN):
            return self._cells(ref, (own,), first, shape).astype(jnp.int32)
        axis = self.down if kind == ROW else 1 - self.down
        part = pl.ds(first[0 if kind == ROW else 1], shape[axis])
        layout = self.layout.reduce(1 - axis)
        line = plgpu.load(ref.at[own, part], layout=layout, optimized=False)
        return jax.lax.broadcast_in_dim(line, shape, (axis,))

    def _cells(self, ref: Any, at: Any, first: tuple[Any, Any], shape: tuple[int, int]) -> Any:
        """Return a block of an array with a number for each cell."""
        down, across = first[self.down], first[1 - self.down]
        block = ref.at[(*at, pl.ds(down, shape[0]), pl.ds(across, shape[1]))]
        return plgpu.load(block, layout=self.layout, optimized=False)


def refusal_of_sizes(q: Any, k: Any, v: Any) -> str | None:
    """Return why a block of threads cannot hold such heads; None where it can."""
    if max(q.shape[3], v.shape[3]) > LARGEST:
        return (
            f"head dimensions are {q.shape[3]} and {v.shape[3]}, of which the kernel takes up to "
            f"{LARGEST}: divide heads"
        )
    if not (q.shape[2] and k.shape[2] and q.shape[3] and v.shape[3]):
        return "there are no queries, no keys or no head dimension"
    return None


def bring(
    inputs: dict[str, Any], rings: Any, at: tuple[Any, Any], places: Any, begin: Any, end: Any,
    members: int = 1,
) -> None:  # fmt: skip
    """Bring the blocks of a line's visits to shared memory, each as soon as its place is free.

    Args:
      inputs: arrays in device memory, [B or 1, groups, length] and more, by name.
      rings: for each array its name, its places [stages, block] and more, and the barriers, one a
        place, at which it is full and free; then the names and places of arrays that share these.
      at: numbers of the example and of the group.
      places: [T]: the number of the block that a visit is of.
      begin: the first visit.
      end: the visit after the last.
      members: how many groups, from that one on, a line visits one after the other.
    """
    plgpu.set_max_registers(hopper.BRINGING, action="decrease")
    stages, size = rings[0][1].shape[:2]

    def visit(member: Any, step: Any, _: None) -> None:
        count = member * (end - begin) + step - begin
        slot = hopper.slot(count, stages)
        part = pl.ds(places[step] * size, size)
        for name, to, full, free, *more in rings:
            pl.when(count >= stages)(partial(plgpu.barrier_wait, free.at[slot]))
            for array, block in ((name, to), *more):
                source = inputs[array].at[of(inputs[array], at[0]), at[1] + member, part]
                plgpu.copy_gmem_to_smem(source, block.at[slot], full.at[slot])

    def one(member: Any, _: None) -> None:
        jax.lax.fori_loop(begin, end, partial(visit, member), None)

    if members == 1:
        one(0, None)
    else:
        jax.lax.fori_loop(0, members, one, None)


def tanh(x: Any) -> Any:
    """Return tanh by an exponential: a GPU's own is exact to 11 bits."""
    return 1 - 2 / (1 + jnp.exp2(x * (2 * LOG2E)))


def cut(n: int, m: int, rows: int, columns: int) -> Sizes:
    """Return sizes of blocks no larger than the problem."""
    return Sizes(n, m, min(rows, up(n, hopper.WARPGROUP_ROWS)), min(columns, up(m, 64)))
