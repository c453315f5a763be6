"""The grouped product on a TPU's matrix units.

A grid step is a visit: one block of rows by one group's matrix. The visits' table is found from the
sizes outside and read by the index maps, so that a group's matrix is fetched once for all blocks of
rows that follow one another in it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxinf_kernels.chips import Chip
from jaxinf_kernels.formats import Quantised, quantise
from jaxinf_kernels.grouped_matmul import xla
from jaxinf_kernels.grouped_matmul.blocks import Blocks, blocks_for, cut, rows_for
from jaxinf_kernels.grouped_matmul.problem import Problem
from jaxinf_kernels.grouped_matmul.schedule import FIRST, FULL, LAST, THERE, visits
from jaxinf_kernels.operation import Rule
from jaxinf_kernels.tiles import precise


def multiply(*arrays: Array, spec: Problem, interpret: Any = False) -> tuple[Array]:
    """Return products [B, N, M]."""
    x, w, sizes = spec.operands(arrays)
    if x.dtype == jnp.float64 or 0 in x.shape or 0 in w.shape:
        return xla.multiply(*arrays, spec=spec)
    call = partial(product, sizes=sizes, spec=spec, dtype=x.dtype, interpret=interpret)
    if not isinstance(w, Quantised):
        if spec.form is None:
            return (call(x, w),)
        w = quantise(w, spec.form, axis=-2)
    q = quantise(x, w.form)
    return (call(q.elements, w.elements, scales=(q.scales, w.scales)),)


def pull(*args: Array, spec: Rule, interpret: Any = False) -> tuple[Array, ...]:
    """Return the cotangents of what is differentiated."""
    problem: Any = spec.spec
    x, w, _ = problem.operands(spec.split(args)[0])
    if x.dtype == jnp.float64 or 0 in x.shape or 0 in w.shape:
        return xla.pull(*args, spec=spec)

    options: Any = dict(spec=problem, interpret=interpret)
    return xla.pulled(partial(product, **options), partial(outer, **options), *args, spec=spec)


def _asked(spec: Problem) -> tuple[Chip | None, Blocks]:
    """Return the chip, as far as it is known, and its blocks."""
    chip = spec.how.known
    return chip, spec.how.blocks or blocks_for(chip)


def _table(sizes: Array, n: int, rows: int, by_group: bool) -> list[Array]:
    """Return the visits' table, [B, T] each."""
    return list(jax.vmap(lambda s: visits(s, n, rows, by_group=by_group))(sizes))


def product(
    x: Array, w: Array, sizes: Array, *, spec: Problem, dtype: Any, transposed: bool = False,
    scales: tuple[Array, Array] | None = None, interpret: Any = False,
) -> Array:  # fmt: skip
    """Return each row [B, N, K] times its group's matrix [B, G, K, M], or [B, G, M, K] transposed.

    Args:
      x: rows.
      w: matrices.
      sizes: of the groups, [B, G].
      spec: names chip and blocks.
      dtype: of the result.
      transposed: multiply by the transposed matrices.
      scales: of rows [B, N, 1] and columns [B, G, 1, M] of whole numbers.
      interpret: as of ``pl.pallas_call``.
    """
    chip, blocks = _asked(spec)
    n, k = x.shape[1:]
    groups, m = w.shape[1], w.shape[2 if transposed else 3]
    batch = max(a.shape[0] for a in (x, w, sizes))
    rows = rows_for(blocks, n, groups)
    widen = scales is not None and chip is not None and not chip.pays("int8")
    size = 2 if widen else x.dtype.itemsize
    wide = blocks.side if transposed else blocks.columns
    depth, columns = cut(k, blocks.depth * 2 // size), cut(m, wide * 2 // size)
    x, w = _deepen(x, 2, depth), _deepen(w, 3 if transposed else 2, depth)
    table = _table(sizes, n, rows, by_group=False)
    steps = pl.cdiv(k, depth)
    at = partial(_at, steps=steps, own=[a.shape[0] > 1 for a in (x, w, sizes)])

    def row(b: Any, j: Any, t: Any, k: Any, *table: Any) -> Any:
        b, _, _, _, block, k = at(b, t, k, table)
        return b, block, k

    def matrix(b: Any, j: Any, t: Any, k: Any, *table: Any) -> Any:
        _, b, _, group, _, k = at(b, t, k, table)
        return (b, group, j, k) if transposed else (b, group, k, j)

    def result(b: Any, j: Any, t: Any, k: Any, *table: Any) -> Any:
        return b, table[1][at(b, t, k, table)[2], t], j

    in_specs = [
        pl.BlockSpec((1, rows, depth), row),
        pl.BlockSpec((1, 1, columns, depth) if transposed else (1, 1, depth, columns), matrix),
    ]
    args = [x, w]
    if scales is not None:
        by_row, by_column = scales
        count = pl.cdiv(n, rows)
        by_row = jnp.pad(by_row[..., 0], ((0, 0), (0, count * rows - n)))
        args += [by_row.reshape(-1, count, 1, rows), by_column]
        in_specs += [
            pl.BlockSpec((1, 1, 1, rows), lambda *g: (*row(*g)[:2], 0, 0)),
            pl.BlockSpec((1, 1, 1, columns), lambda *g: (*matrix(*g)[:2], 0, g[1])),
        ]
    inner = min(blocks.inner * 2 // max(size, 2), columns)
    scratch = (
        [] if steps == 1 else [pltpu.VMEM((rows, columns), jnp.int32 if scales else jnp.float32)]
    )
    kernel = partial(_product, transposed, inner, widen)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(batch, pl.cdiv(m, columns), table[0].shape[1], steps),
            in_specs=in_specs,
            out_specs=pl.BlockSpec((1, rows, columns), result),
            scratch_shapes=scratch,
        ),
        out_shape=jax.ShapeDtypeStruct((batch, n, m), dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=blocks.memory,
        ),
        cost_estimate=_cost(batch, n, k, m, args, dtype),
        interpret=interpret,
        name="grouped_matmul",
    )(*table, *args)


def _at(b: Any, t: Any, k: Any, table: Any, *, steps: int, own: list[bool]) -> tuple[Any, ...]:
    """Return which of a batch x, w and sizes have, the group, the block of rows and of depth.

    A visit without rows stays at the depth where the last one ended: nothing is fetched for it.
    """
    bx, bw, bs = (b if mine else 0 for mine in own)
    groups, blocks, flags = table[:3]
    if steps > 1:
        k = jnp.where((flags[bs, t] & THERE) != 0, k, steps - 1)
    return bx, bw, bs, groups[bs, t], blocks[bs, t], k


def _deepen(a: Array, axis: int, depth: int) -> Array:
    """Fill up with zeros to whole blocks of summands."""
    pad = [(0, -a.shape[i] % depth if i == axis else 0) for i in range(a.ndim)]
    return jnp.pad(a, pad) if any(p for _, p in pad) else a


def _cost(batch: int, n: int, k: int, m: int, args: list[Array], dtype: Any) -> Any:
    moved = sum(a.size * a.dtype.itemsize for a in args)
    return pl.CostEstimate(
        flops=2 * batch * n * k * m,
        transcendentals=0,
        bytes_accessed=moved + batch * n * m * jnp.dtype(dtype).itemsize,
    )


def _dot(a: Array, b: Array, contract: tuple[int, int], widen: bool = False) -> Array:
    """Multiply two blocks; the sum of whole numbers is exact, also where they are widened."""
    whole = a.dtype == jnp.int8
    size = a.shape[contract[0]]
    part = partial(
        jax.lax.dot_general,
        dimension_numbers=(((contract[0],), (contract[1],)), ((), ())),
        precision=precise(a.dtype),
        preferred_element_type=jnp.int32 if whole and not widen else jnp.float32,
    )
    if not widen:
        return part(a, b)
    total = jnp.int32(0)
    for start in range(0, size, xla.EXACT):
        both = ((a, contract[0]), (b, contract[1]))
        end = min(start + xla.EXACT, size)
        parts = [
            jax.lax.slice_in_dim(v, start, end, axis=axis).astype(jnp.bfloat16) for v, axis in both
        ]
        total += part(*parts).astype(jnp.int32)
    return total


def _members(shape: tuple[int, ...], low: Any, high: Any) -> Array:
    """Whether a block's rows are the group's."""
    rows = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    return (rows >= low) & (rows < high)


def _product(
    transposed: bool, inner: int, widen: bool, groups: Any, blocks: Any, flags: Any, low: Any,
    high: Any, x_ref: Any, w_ref: Any, *refs: Any
) -> None:  # fmt: skip
    """Visit a block of rows with a group's matrix, ``inner`` columns at a time."""
    count = 2 if w_ref.dtype == jnp.int8 else 0
    scale_refs, out_ref, sum_refs = refs[:count], refs[count], refs[count + 1 :]
    t, k = pl.program_id(2), pl.program_id(3)
    own = pl.program_id(0) if flags.shape[0] > 1 else 0
    flag = flags[own, t]
    there, first = (flag & THERE) != 0, (flag & FIRST) != 0
    rows, columns = out_ref.shape[1:]

    def put(at: Any, total: Array) -> None:
        if scale_refs:
            by_row, by_column = scale_refs
            column = jnp.transpose(jnp.broadcast_to(by_row[0, 0], (8, rows)))[:, :1]
            total = total.astype(jnp.float32) * column * by_column[0, 0, :, at]
        mine = _members(total.shape, low[own, t], high[own, t])
        seen = jnp.where(first, 0.0, out_ref[0, :, at].astype(jnp.float32))
        out_ref[0, :, at] = jnp.where(mine, total, seen).astype(out_ref.dtype)

    def part(at: Any) -> None:
        w = w_ref[0, 0, at, :] if transposed else w_ref[0, 0, :, at]
        total = _dot(x_ref[0], w, (1, 1 if transposed else 0), widen)
        if not sum_refs:
            put(at, total)
            return
        (sum_ref,) = sum_refs
        total += jnp.where(k == 0, jnp.zeros_like(total), sum_ref[:, at])
        sum_ref[:, at] = total
        pl.when(k == pl.num_programs(3) - 1)(lambda: put(at, total))

    @pl.when(there)
    def add() -> None:
        if columns % inner or columns == inner:
            for start in range(0, columns, inner):
                part(pl.ds(start, min(inner, columns - start)))
        else:
            equal = lambda i: pl.ds(pl.multiple_of(i * inner, inner), inner)  # noqa: E731
            jax.lax.fori_loop(0, columns // inner, lambda i, _: part(equal(i)), None)

    @pl.when(first & ~there)
    def clear() -> None:
        out_ref[0] = jnp.zeros(out_ref.shape[1:], out_ref.dtype)


def outer(
    x: Array, dy: Array, sizes: Array, *, spec: Problem, dtype: Any, interpret: Any = False
) -> Array:
    """Return the sum of x_i dy_i over the rows of each group, [B, G, K, M]."""
    _, blocks = _asked(spec)
    (n, k), m, groups = x.shape[1:], dy.shape[2], sizes.shape[1]
    batch = max(a.shape[0] for a in (x, dy, sizes))
    rows = rows_for(blocks, n, groups)
    size = x.dtype.itemsize
    deep, columns = (cut(a, blocks.side * 2 // size) for a in (k, m))
    table = _table(sizes, n, rows, by_group=True)
    own = [a.shape[0] > 1 for a in (x, dy, sizes)]

    def index(place: int) -> Any:
        def at(b: Any, i: Any, j: Any, t: Any, *table: Any) -> Any:
            bx, bs = (b if mine else 0 for mine in (own[place], own[2]))
            return bx, table[1][bs, t], (i, j)[place]

        return at

    def result(b: Any, i: Any, j: Any, t: Any, *table: Any) -> Any:
        return b, table[0][b if own[2] else 0, t], i, j

    return pl.pallas_call(
        _outer,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(batch, pl.cdiv(k, deep), pl.cdiv(m, columns), table[0].shape[1]),
            in_specs=[
                pl.BlockSpec((1, rows, deep), index(0)),
                pl.BlockSpec((1, rows, columns), index(1)),
            ],
            out_specs=pl.BlockSpec((1, 1, deep, columns), result),
            scratch_shapes=[pltpu.VMEM((deep, columns), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, groups, k, m), dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=blocks.memory,
        ),
        cost_estimate=_cost(batch, n, k, m, [x, dy], dtype),
        interpret=interpret,
        name="grouped_matmul_weights",
    )(*table, x, dy)


def _outer(
    groups: Any, blocks: Any, flags: Any, low: Any, high: Any, x_ref: Any, dy_ref: Any,
    out_ref: Any, sum_ref: Any
) -> None:  # fmt: skip
    """Add a block of rows to its group's sum."""
    t = pl.program_id(3)
    own = pl.program_id(0) if flags.shape[0] > 1 else 0
    flag = flags[own, t]

    @pl.when((flag & FIRST) != 0)
    def start() -> None:
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    def add(masked: bool) -> None:
        def mine(a: Array) -> Array:
            if not masked:
                return a
            wide = jnp.where(_members(a.shape, low[own, t], high[own, t]), a.astype(jnp.float32), 0)
            return wide.astype(a.dtype)

        sum_ref[...] += _dot(mine(x_ref[0]), mine(dy_ref[0]), (0, 0))

    pl.when((flag & FULL) != 0)(partial(add, False))
    pl.when((flag & (FULL | THERE)) == THERE)(partial(add, True))

    @pl.when((flag & LAST) != 0)
    def end() -> None:
        out_ref[0, 0] = sum_ref[...].astype(out_ref.dtype)
