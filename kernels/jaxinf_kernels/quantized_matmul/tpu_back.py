"""Cotangents times the transpose of weights that are held in few bits, on a TPU's matrix units."""

from functools import partial
from math import lcm
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxinf_kernels.chips import Chip
from jaxinf_kernels.quantized_matmul.blocks import Blocks, depth_of
from jaxinf_kernels.quantized_matmul.factors import Factor
from jaxinf_kernels.quantized_matmul.inputs import Inputs, block_of_w, loads_e2m1, memory
from jaxinf_kernels.quantized_matmul.widen import unfolded
from jaxinf_kernels.tiles import LANES, precise


def back(g: Array, w: Factor, sizes: Blocks, chip: Chip | None, interpret: Any = False) -> Array:
    """Return cotangents [B, N, M] times the transpose of w, [B, N, K] in float32.

    Scales that all of K shares are g's already.
    """
    batch, (n, m) = max(g.shape[0], w.elements.shape[0]), g.shape[1:]
    if not batch * n * m:
        return jnp.zeros((batch, n, w.depth), jnp.float32)
    depth, full = depth_of(w.depth, sizes.depth, lcm(LANES, w.size, 32 * max(1, w.of)))
    rows, columns = min(sizes.rows, n), min(sizes.columns, m)
    steps = pl.cdiv(m, columns)
    inputs = Inputs(rows, columns, depth, full // depth, loads_e2m1(chip), turned=True)
    inputs.add("g", g, (1, rows, columns), lambda i, j, s: (i, j))
    inputs.w(w._replace(whole=None), full - w.depth)
    found = pl.pallas_call(
        partial(_kernel, w.form, w.of, m, inputs.names),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=(batch, pl.cdiv(n, rows), full // depth, steps),
            in_specs=inputs.specs,
            out_specs=pl.BlockSpec((1, rows, depth), lambda b, i, j, s: (b, i, j)),
        ),
        out_shape=jax.ShapeDtypeStruct((batch, n, full), jnp.float32),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=memory(chip),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * n * m * w.depth,
            transcendentals=0,
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in inputs.arrays)
            + batch * n * full * 4,
        ),
        interpret=interpret,
        name="quantized_matmul_back",
    )(*inputs.arrays)
    return unfolded(found, depth, w.of)[..., : w.depth]


def _kernel(form: Any, of: int, m: int, names: list[str], *refs: Any) -> None:
    """Add the products of a block of columns."""
    inputs = dict(zip(names, refs, strict=False))
    out_ref = refs[-1]
    g = inputs["g"][0]
    w = block_of_w(inputs, form, of, True, g.dtype)
    step, width = pl.program_id(3), g.shape[1]
    if m % width:  # what lies behind the last column is anything
        g, w = (jnp.where(_there(a, m - step * width), a, 0) for a in (g, w))

    @pl.when(step == 0)
    def start() -> None:
        out_ref[...] = jnp.zeros(out_ref.shape, out_ref.dtype)

    out_ref[0] += jax.lax.dot_general(
        g, w, (((1,), (1,)), ((), ())),
        precision=precise(g.dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip


def _there(a: Array, count: Any) -> Array:
    """Where columns are in front of a number."""
    return jax.lax.broadcasted_iota(jnp.int32, a.shape, 1) < count
