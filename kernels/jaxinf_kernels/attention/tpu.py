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

from jaxinf_kernels.attention.masks import COLUMN, FULL, MIXED, ROW, SCALAR
from jaxinf_kernels.attention.problem import Operands, Problem, precise, score
from jaxinf_kernels.attention.schedule import FIRST, LAST, at_run_time, edged, schedule

LANES = 128
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
    rows, columns = min(blocks.rows, _up(n, 16)), min(blocks.columns, _up(m, LANES))
    inner = min(blocks.inner, columns)
    plan = schedule(spec, n, m, rows, columns, by_rows=True)
    kinds = at_run_time(spec, given.leaves, plan, (n, m, rows, columns))
    padded = _pad(spec, given, rows, columns)
    visited = Visits(spec, given, rows, columns, heads // groups)
    in_specs, args = visited.inputs(padded)
    lse_rows = _up(n, rows)
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


class Visits:
    """Where a visit's blocks lie."""

    def __init__(self, spec: Problem, given: Operands, rows: int, columns: int, shared: int):
        self.spec, self.given, self.rows, self.columns = spec, given, rows, columns
        self.shared = shared
        extras = ("bias", "slopes", "sinks")
        named = [name for name, there in zip(extras, spec.given, strict=True) if there]
        self.names = ["q", "k", "v", *named, *[f"mask {i}" for i in range(len(spec.kinds))]]

    def inputs(self, padded: list[Array]) -> tuple[list[Any], list[Array]]:
        """Return block specifications and arrays in the shapes that they ask for."""
        made = [self._input(name, a) for name, a in zip(self.names, padded, strict=True)]
        return [s for s, _ in made], [a for _, a in made]

    def row(self, size: int) -> Any:
        """A block of rows of an array [B, H, N, size]."""
        return pl.BlockSpec((1, 1, self.rows, size), lambda b, h, t, i, j, c: (b, h, i[t], 0))

    def row_of_numbers(self) -> Any:
        """A block of an array [B, H, 1, N]."""
        return pl.BlockSpec((1, 1, 1, self.rows), lambda b, h, t, i, j, c: (b, h, 0, i[t]))

    def _input(self, name: str, a: Array) -> tuple[Any, Array]:
        b0 = 1 if a.shape[0] > 1 else 0  # whether it has a batch of its own
        shared = self.shared
        if name == "q":
            shape = (1, 1, self.rows, a.shape[3])
            return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, h, i[t], 0)), a
        if name in "kv":
            shape = (1, 1, self.columns, a.shape[3])
            return pl.BlockSpec(
                shape, lambda b, h, t, i, j, c: (b0 * b, _share(h, shared), j[t], 0)
            ), a
        if name == "bias":
            h0 = 1 if a.shape[1] > 1 else 0
            shape = (1, 1, self.rows, self.columns)
            return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, h0 * h, i[t], j[t])), a
        if name in ("slopes", "sinks"):
            a = jnp.broadcast_to(a.astype(jnp.float32)[:, :, None, None], (*a.shape, 1, LANES))
            return pl.BlockSpec((1, 1, 1, LANES), lambda b, h, t, i, j, c: (b0 * b, h, 0, 0)), a
        kind = self.spec.kinds[int(name.split()[1])]
        a = a.astype(jnp.int32)
        if kind == ROW:
            a = jnp.broadcast_to(a[:, :, None], (*a.shape, LANES))
            shape = (1, self.rows, LANES)
            return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, i[t], 0)), a
        if kind == COLUMN:
            a = a[:, None]
            return pl.BlockSpec((1, 1, self.columns), lambda b, h, t, i, j, c: (b0 * b, 0, j[t])), a
        if kind == SCALAR:
            a = jnp.broadcast_to(a[:, None, None], (a.shape[0], 1, LANES))
            return pl.BlockSpec((1, 1, LANES), lambda b, h, t, i, j, c: (b0 * b, 0, 0)), a
        shape = (1, self.rows, self.columns)
        return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, i[t], j[t])), a


def _share(head: Any, shared: int) -> Any:
    """Return the head of keys that a head of queries reads."""
    return head if shared == 1 else jax.lax.div(head, jnp.asarray(shared, head.dtype))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _pad(spec: Problem, given: Operands, rows: int, columns: int) -> list[Array]:
    """Fill rows and columns up to whole blocks."""

    def fill(a: Array, axes: dict[int, int]) -> Array:
        pad = [(0, -a.shape[x] % axes[x] if x in axes else 0) for x in range(a.ndim)]
        return jnp.pad(a, pad) if any(p for _, p in pad) else a

    kinds = {ROW: {1: rows}, COLUMN: {1: columns}, SCALAR: {}}
    leaves = [
        fill(a, kinds.get(kind, {1: rows, 2: columns}))
        for a, kind in zip(given.leaves, spec.kinds, strict=True)
    ]
    bias = None if given.bias is None else fill(given.bias, {2: rows, 3: columns})
    q, k, v = fill(given.q, {2: rows}), fill(given.k, {2: columns}), fill(given.v, {2: columns})
    return spec.flat(given._replace(q=q, k=k, v=v, bias=bias, leaves=tuple(leaves)))


def _lanes(a: Array, width: int) -> Array:
    """Return numbers that are the same in all lanes, in ``width`` of them."""
    if width <= LANES:
        return a[:, :width]
    wide = jnp.concatenate([a] * (-(-width // LANES)), axis=1)
    return wide[:, :width]


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
            shown.append(_lanes(ref[0], s.shape[1]))
        elif kind == COLUMN:
            shown.append(ref[0, :, part])
        elif kind == SCALAR:
            shown.append(ref[0, :, :1])
        else:
            shown.append(ref[0, :, part])
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
            p = jnp.exp2(s - _lanes(top, inner))
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
            mean_ref[...] = mean_ref[...] * _lanes(fall, v.shape[1]) + mean
            top_ref[...], sum_ref[...] = top, total

    pl.when((kind & 3) == FULL)(partial(visit, False))
    if edge(None) is not None:
        pl.when((kind & 3) == MIXED)(partial(visit, True))

    @pl.when((kind & LAST) != 0)
    def end() -> None:
        total = jnp.sum(sum_ref[...], axis=1, keepdims=True)
        there = total > 0
        safe = jnp.where(there, total, 1)
        out_ref[0, 0] = jnp.where(there, mean_ref[...] / safe, 0).astype(out_ref.dtype)
        lse = (top_ref[...] + jnp.log2(safe)) / LOG2E
        lse = jnp.where(there, lse, -jnp.inf)
        lse_ref[0, 0] = jnp.transpose(lse)[:1]
