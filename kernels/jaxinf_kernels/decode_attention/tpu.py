"""Attention to a paged cache on a TPU: what :mod:`kernel` is given, and what it costs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxinf_kernels.decode_attention.blocks import Blocks, blocks_for
from jaxinf_kernels.decode_attention.kernel import Scalars, Sizes, attend_block
from jaxinf_kernels.decode_attention.problem import Operands, Problem
from jaxinf_kernels.tiles import LANES


def attend(
    *arrays: Array, spec: Problem, blocks: Blocks | None = None, interpret: Any = False
) -> tuple[Array, Array]:
    """Return outputs [B, N, G, R, E] and the logarithms of the softmax's sums [B, N, G, R]."""
    given = spec.operands(arrays)
    chip = spec.how.known
    blocks = blocks or spec.how.blocks or blocks_for(chip)
    batch, cache = max(a.shape[0] for a in arrays), given.cache
    number, groups, rows = given.q.shape[1:4]
    steps = -(-number // blocks.cores)
    filled = blocks.cores * steps
    sizes = _sizes(given, blocks, steps)
    q, scalars = _inputs(spec, given, batch, filled, sizes)
    names, specs, extras = _extras(spec, given, sizes)
    leaves = jax.tree.leaves(cache)
    total, e = groups * sizes.rows, cache.values.width
    at = partial(_block, steps)
    out, lse = pl.pallas_call(
        partial(attend_block, spec, sizes, names),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(batch, blocks.cores, steps),
            in_specs=[
                pl.BlockSpec((1, 1, *q.shape[2:]), at(q.shape[0] > 1, 3)),
                *specs,
                *[pl.BlockSpec(memory_space=pltpu.HBM) for _ in leaves],
            ],
            out_specs=(
                pl.BlockSpec((1, 1, groups, sizes.rows, e), at(True, 3)),
                pl.BlockSpec((1, 1, 1, total), at(True, 2)),
            ),
            scratch_shapes=[
                *[pltpu.VMEM((2, sizes.pages, *a.shape[2:]), a.dtype) for a in leaves],
                pltpu.SemaphoreType.DMA((2, sizes.pages)),
                pltpu.SMEM((1,), jnp.int32),
                pltpu.VMEM((total, LANES), jnp.float32),
                pltpu.VMEM((total, LANES), jnp.float32),
                pltpu.VMEM((total, e), jnp.float32),
            ],
        ),
        out_shape=(
            jax.ShapeDtypeStruct((batch, filled, groups, sizes.rows, e), q.dtype),
            jax.ShapeDtypeStruct((batch, filled, 1, total), jnp.float32),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=blocks.memory,
        ),
        cost_estimate=_cost(given, batch, sizes),
        interpret=interpret,
        name="decode_attention",
    )(*scalars, q, *extras, *leaves)
    lse = lse.reshape(batch, filled, groups, sizes.rows)
    return out[:, :number, :, :rows], lse[:, :number, :, :rows]


def _sizes(given: Operands, blocks: Blocks, steps: int) -> Sizes:
    """Fill up rows to whole tiles; fetch as many pages as are asked for."""
    cache = given.cache
    size, tile = cache.page_size, 32 // given.q.dtype.itemsize
    pages = max(1, min(blocks.tokens // size, given.table.shape[2]))
    together = cache.form is None and size % tile == 0
    sequences, width = given.table.shape[1:]
    return Sizes(
        steps, -(-given.q.shape[3] // 8) * 8, pages, size, together, width, sequences,
        given.table.shape[0], cache.keys.elements.shape[0],
    )  # fmt: skip


def _inputs(
    spec: Problem, given: Operands, batch: int, filled: int, sizes: Sizes
) -> tuple[Array, Scalars]:
    """Return filled queries and, in flat arrays, whose they are and which pages they see."""
    more = filled - given.q.shape[1]
    rows = sizes.rows - given.q.shape[3]
    q = jnp.pad(given.q, ((0, 0), (0, more), (0, 0), (0, rows), (0, 0)))
    size = jnp.int32(sizes.size)
    first, end = given.first, given.end
    seen_from = 0 if spec.window is None else jnp.maximum(first - (spec.window - 1), 0)
    low = jax.lax.div(seen_from + 0 * first, jnp.full_like(first, size))
    high = jax.lax.div(jnp.maximum(end, 0) + (size - 1), jnp.full_like(end, size))
    high = jnp.minimum(high, sizes.width)

    def flat(a: Array) -> Array:
        a = jnp.broadcast_to(a, (batch, a.shape[1]))
        return jnp.pad(a, ((0, 0), (0, more))).reshape(-1).astype(jnp.int32)

    table = given.table.reshape(-1).astype(jnp.int32)
    return q, Scalars(table, *map(flat, (given.sequence, first, end, low, high)))


def _block(steps: int, own: bool, more: int) -> Any:
    """Map a grid step to its block of queries."""
    return lambda b, c, t, *scalars: (b if own else 0, c * steps + t, *[0] * more)


def _extras(spec: Problem, given: Operands, sizes: Sizes) -> tuple[list[str], list[Any], Any]:
    """Return names, block specifications and arrays of what there is for each row."""
    groups, rows = given.q.shape[2:4]
    repeats = rows // spec.queries

    def fill(a: Array) -> Array:
        """[B, G, H // G] or [B, G, R] to all rows and lanes."""
        if a.shape[2] != rows:
            a = jnp.tile(a, (1, 1, spec.queries))
        a = jnp.pad(a, ((0, 0), (0, 0), (0, sizes.rows - rows))).reshape(len(a), -1, 1)
        return jnp.broadcast_to(a, (*a.shape[:2], LANES))

    found = {}
    if spec.queries > 1:
        query = np.arange(rows, dtype=np.int32) // repeats
        found["query"] = fill(jnp.broadcast_to(query, (1, groups, rows)))
    for name, a in (("slopes", given.slopes), ("sinks", given.sinks)):
        if a is not None:
            found[name] = fill(a.astype(jnp.float32))
    specs = [
        pl.BlockSpec((1, *a.shape[1:]), partial(_of_batch, a.shape[0] > 1)) for a in found.values()
    ]
    return list(found), specs, list(found.values())


def _of_batch(own: bool, b: Any, *rest: Any) -> Any:
    return (b if own else 0, 0, 0)


def _cost(given: Operands, batch: int, sizes: Sizes) -> pl.CostEstimate:
    """What it costs if every page of the table is seen, which is the most that can be."""
    cache = given.cache
    blocks, groups, rows = given.q.shape[1:4]
    tokens = sizes.width * sizes.size
    wide = cache.keys.width + cache.values.width
    moved = tokens * cache.bytes_per_token
    return pl.CostEstimate(
        flops=2 * batch * blocks * groups * rows * tokens * wide,
        transcendentals=batch * blocks * groups * rows * tokens,
        bytes_accessed=int(batch * blocks * (moved + groups * rows * (wide * 2 + 4))),
    )
