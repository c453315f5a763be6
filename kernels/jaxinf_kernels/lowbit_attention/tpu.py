"""Low-bit attention on a TPU's matrix units.

The kernel is attention's, with products of few bits: the same visits in the same order. A row's
factor is kept in all lanes; a column's is one for each lane. Formats that a chip's matrix unit has
no gain from are widened to bfloat16 in front of it, which has all their bits.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxinf_kernels.attention.blocks import Blocks
from jaxinf_kernels.attention.masks import FULL, MIXED
from jaxinf_kernels.attention.problem import Operands
from jaxinf_kernels.attention.schedule import FIRST, LAST, Sizes, at_run_time, edged, schedule
from jaxinf_kernels.attention.tpu import LOG2E, LOWEST, finished, unit
from jaxinf_kernels.attention.tpu_blocks import Visits, lanes, padded, share
from jaxinf_kernels.chips import Chip
from jaxinf_kernels.formats import E4M3, INT4, INT8, Format
from jaxinf_kernels.lowbit_attention import xla
from jaxinf_kernels.lowbit_attention.blocks import blocks_for
from jaxinf_kernels.lowbit_attention.precision import TOKENS
from jaxinf_kernels.lowbit_attention.prepare import Prepared, prepare
from jaxinf_kernels.lowbit_attention.problem import LowBit
from jaxinf_kernels.lowbit_attention.weights import rounded
from jaxinf_kernels.tiles import LANES, up


def attend(*arrays: Array, spec: LowBit, interpret: Any = False) -> tuple[Array, Array]:
    """Return outputs [B, H, N, E] and the logarithms of the softmax's sums [B, H, N]."""
    given = spec.asked.operands(arrays)
    if not given.q.shape[2] or not given.k.shape[2]:
        return xla.attend(*arrays, spec=spec)
    how = spec.how
    chip = how.known
    masked = spec.asked.mask is not None
    blocks = how.blocks or blocks_for(chip, spec.precision, masked)
    return _call(spec, given, chip, blocks, interpret)


def _call(
    spec: LowBit, given: Operands, chip: Chip | None, blocks: Blocks, interpret: Any
) -> tuple[Array, Array]:
    """Prepare operands and visit all blocks."""
    problem, precision = spec.asked, spec.precision
    arrays = problem.flat(given)
    (_, heads, n, d), (_, groups, m, e) = given.q.shape, given.v.shape
    batch = max(a.shape[0] for a in arrays)
    rows = up(n, 64) if n <= TOKENS else min(blocks.rows, up(n, TOKENS))
    columns = min(blocks.columns, up(m, LANES))
    inner = min(blocks.inner, columns)
    sizes = Sizes(n, m, rows, columns)
    plan = schedule(problem, sizes, by_rows=True)
    kinds = at_run_time(problem, given.leaves, plan, sizes)
    ready = prepare(precision, *given[:3])
    elements = given._replace(q=ready.q.elements, k=ready.k.elements, v=ready.v.elements)
    visited = Visits(problem, elements, rows, columns, heads // groups)
    in_specs, args = visited.inputs(padded(problem, elements, rows, columns))
    names, factor_specs, factors = _factors(spec, ready, rows, columns, heads // groups)
    height, steps = up(n, rows), len(plan.kinds)
    seen = int(((plan.kinds & 3) > 0).sum())
    scratch = 3 if "capped shift" in names else 2
    kernel = partial(_forward, spec, partial(edged, problem, m, columns), visited.names + names,
                     inner, _unit_dtypes(spec, chip, bool(interpret)))  # fmt: skip
    out, lse = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, heads, steps),
            in_specs=in_specs + factor_specs,
            out_specs=(visited.row(e), visited.row_of_numbers()),
            scratch_shapes=[
                pltpu.VMEM((rows, e), jnp.float32),
                *[pltpu.VMEM((rows, LANES), jnp.float32)] * (scratch + 1),
            ],
        ),
        out_shape=(
            jax.ShapeDtypeStruct((batch, heads, height, e), given.v.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, height), jnp.float32),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=64 * 2**20,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * heads * seen * rows * columns * (d + e),
            transcendentals=batch * heads * seen * rows * columns,
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in elements[:3])
            + batch * heads * n * (e * given.v.dtype.itemsize + 4),
        ),
        interpret=interpret,
        name="lowbit_attention",
    )(jnp.asarray(plan.rows), jnp.asarray(plan.columns), kinds, *args, *factors)
    out, lse = out[:, :, :n], lse[:, :, 0, :n]
    missing = xla.lost(spec, ready.shift)
    return out, lse + missing


def _unit_dtypes(spec: LowBit, chip: Chip | None, interpret: bool) -> tuple[Any, Any]:
    """Return what the matrix unit takes in the two products.

    A CPU has no products of INT4; those of bfloat16 are the same numbers.
    """

    def dtype(form: Format | None) -> Any:
        if form is None or form.block is not None:
            return jnp.bfloat16
        pays = form == INT8 if chip is None else chip.pays(form.name)
        pays = pays and not (interpret and form == INT4)
        return form.dtype if pays else jnp.bfloat16

    return dtype(spec.precision.qk), dtype(spec.precision.pv)


def _factors(
    spec: LowBit, ready: Prepared, rows: int, columns: int, shared: int
) -> tuple[list[str], list[Any], list[Array]]:
    """Return names, block specifications and arrays of what goes with the elements."""
    scale = unit(spec.asked)

    def filled(a: Array, block: int) -> Array:
        return jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, -a.shape[-1] % block)])

    def of_rows(a: Array) -> tuple[Any, Array]:
        a = filled(a, rows)[:, :, None]
        b0 = 1 if a.shape[0] > 1 else 0
        return pl.BlockSpec((1, 1, 1, rows), lambda b, h, t, i, j, c: (b0 * b, h, 0, i[t])), a

    def of_columns(a: Array) -> tuple[Any, Array]:
        a = filled(a, columns)[:, :, None]
        b0 = 1 if a.shape[0] > 1 else 0
        return pl.BlockSpec(
            (1, 1, 1, columns), lambda b, h, t, i, j, c: (b0 * b, share(h, shared), 0, j[t])
        ), a

    def of_features(a: Array) -> tuple[Any, Array]:
        a = a[:, :, None]
        b0 = 1 if a.shape[0] > 1 else 0
        return pl.BlockSpec(
            (1, 1, 1, a.shape[3]), lambda b, h, t, i, j, c: (b0 * b, share(h, shared), 0, 0)
        ), a

    def of_tiles(a: Array) -> tuple[Any, Array]:
        count = max(1, rows // TOKENS)
        a = filled(a, columns)
        a = jnp.pad(a, ((0, 0), (0, 0), (0, -a.shape[2] % count), (0, 0)))[:, :, :, None]
        b0 = 1 if a.shape[0] > 1 else 0
        return pl.BlockSpec(
            (1, 1, count, 1, columns), lambda b, h, t, i, j, c: (b0 * b, h, i[t], 0, j[t])
        ), a

    made = {
        "q scale": of_rows(ready.q.scale * scale),
        "k scale": of_columns(ready.k.scale),
        "v scale": of_features(ready.v.scale),
    }
    if ready.base is not None:
        made["base"] = of_tiles(ready.base * scale)
    if ready.shift is not None and spec.asked.soft_cap is not None:
        made["capped shift"] = of_rows(ready.shift * scale)
    elif ready.shift is not None and spec.asked.given[2]:
        made["sunk shift"] = of_rows(ready.shift * (spec.asked.scale * LOG2E))
    return list(made), [s for s, _ in made.values()], [a for _, a in made.values()]


def _down(ref: Any) -> Array:
    """Return numbers that lie along lanes, [1, 1, 1, rows], down the rows in all lanes."""
    row = ref[0, 0]
    return jnp.transpose(jnp.broadcast_to(row, (LANES, row.shape[1])))


def _widen(x: Array, dtype: Any) -> Array:
    """Return elements in a wider dtype."""
    if x.dtype == dtype:
        return x
    if jnp.issubdtype(x.dtype, jnp.integer):
        x = x.astype(jnp.int32).astype(jnp.float32)
    return x.astype(dtype)


def _held(p: Array, form: Format | None, dtype: Any) -> tuple[Array, Array]:
    """Return rounded weights, to be summed, and as what the matrix unit takes."""
    if form is not None and form.whole:
        # the sum's last bit is worth one: its bits are the nearest whole number, counted from there
        middle = 1.5 * 2.0**23
        bits = jax.lax.bitcast_convert_type(p + middle, jnp.int32)
        p = bits - int(np.float32(middle).view(np.int32))
        whole = p if jnp.issubdtype(dtype, jnp.integer) else p.astype(jnp.float32)
        return p, whole.astype(dtype)
    if form == E4M3 and dtype == E4M3.dtype:
        held = p.astype(dtype)
        return held.astype(jnp.float32), held
    p = rounded(p, form, _block_top)
    return p, p.astype(dtype)


def _product(a: Array, b: Array, axis: int) -> Array:
    """Return a product of blocks in float32, exact for whole numbers."""
    exact = jnp.int32 if jnp.issubdtype(a.dtype, jnp.integer) else jnp.float32
    contract = (((1,), (axis,)), ((), ()))
    return jax.lax.dot_general(a, b, contract, preferred_element_type=exact).astype(jnp.float32)


def _block_top(p: Array, block: int) -> Array:
    """Return the largest of each ``block`` lanes in all of these."""
    lane = jax.lax.broadcasted_iota(jnp.int32, p.shape, 1)
    width, step = p.shape[1], 1
    while step < block:
        other = jnp.where(
            (lane & step) == 0, pltpu.roll(p, width - step, 1), pltpu.roll(p, step, 1)
        )
        p, step = jnp.maximum(p, other), 2 * step
    return p


def _forward(
    spec: LowBit, edge: Any, names: list[str], inner: int, dtypes: Any, rows: Any, columns: Any,
    kinds: Any, *refs: Any
) -> None:  # fmt: skip
    """Visit a block of keys."""
    inputs = dict(zip(names, refs, strict=False))
    out_ref, lse_ref, mean_ref, top_ref, sum_ref, factor_ref, *rest = refs[len(names) :]
    precision = spec.precision
    step = pl.program_id(2)
    own = pl.program_id(0) if kinds.shape[0] > 1 else 0
    kind = kinds[own, step]
    q_ref, k_ref, v_ref = (inputs[name] for name in "qkv")
    height, width = q_ref.shape[2], k_ref.shape[2]
    place = rows[step] * height, columns[step] * width

    def whole(top: Array) -> Array:
        return jnp.ceil(top) if precision.exponents else top

    @pl.when((kind & FIRST) != 0)
    def start() -> None:
        factor_ref[...] = _down(inputs["q scale"])
        if rest:
            rest[0][...] = _down(inputs["capped shift"])
        if "sinks" in inputs:
            sink = jnp.broadcast_to(inputs["sinks"][0, 0] * LOG2E, top_ref.shape)
            if "sunk shift" in inputs:
                sink = sink - _down(inputs["sunk shift"])
            top = whole(sink)
            lane = jax.lax.broadcasted_iota(jnp.int32, sum_ref.shape, 1)
            weight = jnp.exp2(sink - (top - precision.log2_peak))
            top_ref[...] = top
            sum_ref[...] = jnp.where(lane == 0, weight, 0.0)
        else:
            top_ref[...] = jnp.full(top_ref.shape, LOWEST / 2, jnp.float32)
            sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
        mean_ref[...] = jnp.zeros(mean_ref.shape, jnp.float32)

    def scaled(part: Any) -> Array:
        q, k = _widen(q_ref[0, 0], dtypes[0]), _widen(k_ref[0, 0, part, :], dtypes[0])
        factor, columns = factor_ref[...], inputs["k scale"][0, 0, :, part]
        if precision.tokens % inner == 0 and precision.qk.block is None:  # one for all of them
            s = _product(q, k, 1) * lanes(factor * columns[:, :1], inner)
        else:
            s = _product(q, k, 1) * lanes(factor, inner) * columns
        if "base" in inputs:
            base = inputs["base"][0, 0, :, :, part]
            tall = (base.shape[0], height // base.shape[0], inner)
            s = s + jnp.broadcast_to(base, tall).reshape(height, inner)
        return s + lanes(rest[0][...], inner) if rest else s

    def visit(masked: bool) -> None:
        for begin in range(0, width, inner):
            part = pl.ds(begin, inner)
            s = finished(spec.asked, edge, inputs, place, part, scaled(part), masked)
            before = top_ref[...]
            top = jnp.maximum(before, whole(jnp.max(s, axis=1, keepdims=True)))
            p = jnp.exp2(s - lanes(top - precision.log2_peak, inner))
            fall = jnp.exp2(before - top)
            v = _widen(v_ref[0, 0, part, :], dtypes[1])
            p, given = _held(p, precision.pv, dtypes[1])
            fresh = p[:, :LANES]
            for lane in range(LANES, inner, LANES):
                fresh += p[:, lane : lane + LANES]
            total = sum_ref[...] * fall + fresh.astype(jnp.float32)
            mean_ref[...] = mean_ref[...] * lanes(fall, v.shape[1]) + _product(given, v, 0)
            top_ref[...], sum_ref[...] = top, total

    pl.when((kind & 3) == FULL)(partial(visit, False))
    if edge(None) is not None:
        pl.when((kind & 3) == MIXED)(partial(visit, True))

    @pl.when((kind & LAST) != 0)
    def end() -> None:
        total = jnp.sum(sum_ref[...], axis=1, keepdims=True)
        there = total > 0
        safe = jnp.where(there, total, 1)
        mean = mean_ref[...] * inputs["v scale"][0, 0]
        out_ref[0, 0] = jnp.where(there, mean / safe, 0).astype(out_ref.dtype)
        lse = (top_ref[...] + (jnp.log2(safe) - precision.log2_peak)) / LOG2E
        lse = jnp.where(there, lse, -jnp.inf)
        lse_ref[0, 0] = jnp.transpose(lse)[:1]
