"""Attention on a TPU's matrix units.

One grid step is one visit of a block of keys by a block of queries that see some of it. The
running maximum is kept in all lanes, the running sum lane by lane: lanes are added up once, at a
row's end.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxinf_kernels.attention.masks import FULL, MIXED, ROW, SCALAR
from jaxinf_kernels.attention.problem import Problem, score
from jaxinf_kernels.attention.schedule import FIRST, LAST, Sizes, at_run_time, edged, schedule
from jaxinf_kernels.attention.tpu_blocks import Visits, lanes, padded
from jaxinf_kernels.tiles import LANES, precise, up

LOWEST = -0.7 * float(np.finfo(np.float32).max)
"""Logits of what is not seen. Running maxima start from half of it: so the weight of what is not
seen is zero, also where nothing has been."""
LOG2E = float(np.log2(np.e))


class Blocks(NamedTuple):
    """How a kernel goes about."""

    rows: int = 512
    """Queries in a block."""
    columns: int = 512
    """Keys in a block of memory."""
    inner: int = 512
    """Keys in a product."""


def attend(
    *arrays: Array, spec: Problem, blocks: Blocks, interpret: Any = False
) -> tuple[Array, Array]:
    """Return outputs [B, H, N, E] and the logarithms of the softmax's sums [B, H, N]."""
    given = spec.operands(arrays)
    q, k, v = given[:3]
    (batch, heads, n, d), (_, groups, m, e) = q.shape, v.shape
    batch = max(a.shape[0] for a in arrays)
    rows, columns = min(blocks.rows, up(n, 16)), min(blocks.columns, up(m, LANES))
    inner = min(blocks.inner, columns)
    sizes = Sizes(n, m, rows, columns)
    plan = schedule(spec, sizes, by_rows=True)
    kinds = at_run_time(spec, given.leaves, plan, sizes)
    filled = padded(spec, given, rows, columns)
    visited = Visits(spec, given, rows, columns, heads // groups)
    in_specs, args = visited.inputs(filled)
    lse_rows = up(n, rows)
    out_shape = (
        jax.ShapeDtypeStruct((batch, heads, lse_rows, e), v.dtype),
        jax.ShapeDtypeStruct((batch, heads, 1, lse_rows), jnp.float32),
    )
    steps = len(plan.kinds)
    seen = int(((plan.kinds & 3) > 0).sum())
    cost = pl.CostEstimate(
        flops=2 * batch * heads * seen * rows * columns * (d + e),
        transcendentals=batch * heads * seen * rows * columns,
        bytes_accessed=sum(a.size * a.dtype.itemsize for a in (q, k, v))
        + batch * heads * n * (e * v.dtype.itemsize + 4),
    )
    out, lse = pl.pallas_call(
        partial(_forward, spec, partial(edged, spec, m, columns), visited.names, inner),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, heads, steps),
            in_specs=in_specs,
            out_specs=(visited.row(e), visited.row_of_numbers()),
            scratch_shapes=[
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, LANES), jnp.float32),
                pltpu.VMEM((rows, e), jnp.float32),
            ],
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=64 * 2**20,
        ),
        cost_estimate=cost,
        interpret=interpret,
        name="attention",
    )(jnp.asarray(plan.rows), jnp.asarray(plan.columns), kinds, *args)
    return out[:, :, :n], lse[:, :, 0, :n]


def logits(
    spec: Problem, edge: Any, refs: dict[str, Any], place: Any, part: Any, q: Array, k: Array,
    masked: bool
) -> Array:  # fmt: skip
    """Return logits of a block of rows and a part of a block of columns, in units of log 2.

    ``place`` is (first row, first column), ``part`` the columns' slice in their block.
    """
    contract = (((1,), (1,)), ((), ()))
    s = jax.lax.dot_general(
        q, k, contract, precision=precise(q.dtype), preferred_element_type=jnp.float32
    )
    return finished(spec, edge, refs, place, part, s * unit(spec), masked)


def unit(spec: Problem) -> float:
    """Return what products are multiplied by before :func:`finished`."""
    return spec.scale * (1.0 if _special(spec) else LOG2E)


def _special(spec: Problem) -> bool:
    """Whether logits are more than scaled products."""
    return spec.soft_cap is not None or any(spec.given[:2])


def finished(
    spec: Problem, edge: Any, refs: dict[str, Any], place: Any, part: Any, s: Array, masked: bool
) -> Array:
    """Cap, bias and mask products in their unit; arguments as in :func:`logits`."""
    i = place[0] + jax.lax.broadcasted_iota(jnp.int32, s.shape, 0)
    j = place[1] + part.start + jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
    if _special(spec):
        bias = refs["bias"][0, 0, :, part].astype(jnp.float32) if "bias" in refs else None
        slope = refs["slopes"][0, 0, :, :1] if "slopes" in refs else None
        s = score(spec, s, bias, slope, i, j) * LOG2E
    if not masked:
        return s
    shown = []
    for number, kind in enumerate(spec.kinds):
        ref = refs[f"mask {number}"]
        if kind == ROW:
            shown.append(lanes(ref[0, 0], s.shape[1]))
        elif kind == SCALAR:
            shown.append(ref[0, 0, :, :1])
        else:
            shown.append(ref[0, 0, :, part])
    mask = edge(shown)
    return s if mask is None else jnp.where(mask.sees(i, j), s, LOWEST)


def _forward(
    spec: Problem, edge: Any, names: list[str], inner: int, rows: Any, columns: Any, kinds: Any,
    *refs: Any
) -> None:  # fmt: skip
    """Visit a block of keys."""
    inputs = dict(zip(names, refs, strict=False))
    out_ref, lse_ref, top_ref, sum_ref, mean_ref = refs[len(names) :]
    step = pl.program_id(2)
    own = pl.program_id(0) if kinds.shape[0] > 1 else 0
    kind = kinds[own, step]
    q_ref, k_ref, v_ref = (inputs[name] for name in "qkv")
    height, width = q_ref.shape[2], k_ref.shape[2]
    place = rows[step] * height, columns[step] * width

    @pl.when((kind & FIRST) != 0)
    def start() -> None:
        if "sinks" in inputs:
            sink = inputs["sinks"][0, 0] * LOG2E
            top_ref[...] = jnp.broadcast_to(sink, top_ref.shape)
            lane = jax.lax.broadcasted_iota(jnp.int32, sum_ref.shape, 1)
            sum_ref[...] = jnp.where(lane == 0, 1.0, 0.0)
        else:
            top_ref[...] = jnp.full(top_ref.shape, LOWEST / 2, jnp.float32)
            sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
        mean_ref[...] = jnp.zeros(mean_ref.shape, jnp.float32)

    def visit(masked: bool) -> None:
        q = q_ref[0, 0]
        for begin in range(0, width, inner):
            part = pl.ds(begin, inner)
            s = logits(spec, edge, inputs, place, part, q, k_ref[0, 0, part, :], masked)
            before = top_ref[...]
            top = jnp.maximum(before, jnp.max(s, axis=1, keepdims=True))
            p = jnp.exp2(s - lanes(top, inner))
            v = v_ref[0, 0, part, :]
            p = p.astype(v.dtype)
            fall = jnp.exp2(before - top)
            total = sum_ref[...] * fall
            for lane in range(0, inner, LANES):
                total += p[:, lane : lane + LANES].astype(jnp.float32)
            contract = (((1,), (0,)), ((), ()))
            mean = jax.lax.dot_general(
                p, v, contract, precision=precise(v.dtype), preferred_element_type=jnp.float32
            )
            mean_ref[...] = mean_ref[...] * lanes(fall, v.shape[1]) + mean
            top_ref[...], sum_ref[...] = top, total

    pl.when((kind & 3) == FULL)(partial(visit, False))
    if edge(None) is not None:
        pl.when((kind & 3) == MIXED)(partial(visit, True))

    @pl.when((kind & LAST) != 0)
    def end() -> None:
        total = jnp.sum(sum_ref[...], axis=1, keepdims=True)
        out = mean_ref[...] * jnp.where(total > 0, 1 / total, 0)
        out_ref[0, 0] = out.astype(out_ref.dtype)
        # a row of numbers is made of two columns by one transpose
        lane = jax.lax.broadcasted_iota(jnp.int32, top_ref.shape, 1)
        both = jnp.transpose(jnp.where(lane == 0, top_ref[...], total))
        top, total = both[:1], both[1:2]
        lse = (top + jnp.log2(jnp.where(total > 0, total, 1))) / LOG2E
        lse_ref[0, 0] = jnp.where(total > 0, lse, -jnp.inf)
