"""The grouped product on an NVIDIA GPU's tensor cores: what is asked of the kernels."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.formats import Quantised, quantise
from jaxinf_kernels.grouped_matmul import gpu_blackwell, gpu_rows, gpu_weights, xla
from jaxinf_kernels.grouped_matmul.gpu_blocks import COMPUTING, Blocks, blocks_for, stages_for
from jaxinf_kernels.grouped_matmul.problem import Problem
from jaxinf_kernels.grouped_matmul.schedule import bounds
from jaxinf_kernels.operation import Rule
from jaxinf_kernels.tiles import filled_up, up

ROWS, ROW = 8, 128
"""Rows, and bytes of a row, in a tile of shared memory."""


def refusal(spec: Problem | Rule, arrays: Any) -> str | None:
    """Return which constraint of the kernels is violated, and what mends that."""
    problem: Any = getattr(spec, "spec", spec)
    chip, x = problem.how.known, arrays[0]
    if chip is not None and chip.platform != "cuda":
        return f"there is no kernel for {chip.name}: name chip='h100', 'h200' or 'b200'"
    whole = problem.form is not None and problem is spec
    if x.dtype != jnp.bfloat16 and not (whole and x.dtype == jnp.float32):
        return f"tensor cores do not multiply {x.dtype}: cast with astype(jnp.bfloat16)" + (
            ", or name form=INT8" if problem is spec and x.dtype == jnp.float32 else ""
        )
    if 0 in x.shape or 0 in arrays[1].shape:
        return "nothing is multiplied: leave implementation out"
    return None


def multiply(*arrays: Array, spec: Problem) -> tuple[Array]:
    """Return products [B, N, M]."""
    x, w, sizes = spec.operands(arrays)
    call = partial(product, sizes=sizes, spec=spec, dtype=x.dtype)
    if not isinstance(w, Quantised):
        if spec.form is None:
            return (call(x, w),)
        w = quantise(w, spec.form, axis=-2)
    q = quantise(x, w.form)
    return (call(q.elements, w.elements, scales=(q.scales, w.scales)),)


def pull(*args: Array, spec: Rule) -> tuple[Array, ...]:
    """Return the cotangents of what is differentiated."""
    options: Any = {"spec": spec.spec}
    # of matrices' cotangents there is a kernel for Hopper
    weights = xla.outer if options["spec"].how.gpu.blackwell else partial(outer, **options)
    return xla.pulled(partial(product, **options), weights, *args, spec=spec)


def _blocks(spec: Problem, n: int, groups: int) -> Blocks:
    """Return those that the caller names, or those that suit."""
    named = spec.how.blocks
    if isinstance(named, Blocks):
        return named
    return Blocks() if spec.how.gpu.blackwell else blocks_for(n, groups)


def product(
    x: Array, w: Array, sizes: Array, *, spec: Problem, dtype: Any, transposed: bool = False,
    scales: tuple[Array, Array] | None = None,
) -> Array:  # fmt: skip
    """Return each row [B, N, K] times its group's matrix [B, G, K, M], or [B, G, M, K] transposed.

    Of :func:`jaxinf_kernels.grouped_matmul.tpu.product`'s arguments.
    """
    (n, k), groups, m = x.shape[1:], w.shape[1], w.shape[2 if transposed else 3]
    batch = max(a.shape[0] for a in (x, w, sizes))
    blocks = _blocks(spec, n, groups)
    if scales is not None:  # tensor cores take whole numbers by columns
        w = jnp.swapaxes(w, 2, 3)
    by_columns = transposed or scales is not None
    depth = ROW // x.dtype.itemsize
    table = gpu_rows.table(sizes, n, blocks.rows)
    wide = COMPUTING * blocks.columns
    plan = gpu_rows.Plan(
        scales is not None, by_columns, (batch, table.shape[2], -(-m // wide)), -(-k // depth),
        depth, stages_for(blocks, depth, x.dtype), blocks,
    )  # fmt: skip
    ready = [table, filled_up(x, {1: ROWS, 2: depth}), filled_up(w, {2: ROWS, 3: depth})]
    if scales is not None:
        by_row, by_column = scales
        ready += [
            filled_up(by_row[..., 0], {1: blocks.rows}),
            filled_up(by_column[:, :, 0], {2: wide}),
        ]
    width = up(m, ROW // jnp.dtype(dtype).itemsize)
    call = gpu_blackwell.call if spec.how.gpu.blackwell else gpu_rows.call
    found = call(plan, ready, (batch, n, width), dtype, spec.how.gpu.cores)
    return found if width == m else found[..., :m]


def outer(x: Array, dy: Array, sizes: Array, *, spec: Problem, dtype: Any) -> Array:
    """Return the sum of x_i dy_i over the rows of each group, [B, G, K, M]."""
    (n, k), m, groups = x.shape[1:], dy.shape[2], sizes.shape[1]
    batch = max(a.shape[0] for a in (x, dy, sizes))
    blocks = _blocks(spec, 128 * groups, groups)
    wide, depth = COMPUTING * blocks.columns, ROW // x.dtype.itemsize
    ends = jax.vmap(lambda s: jnp.stack(bounds(s.astype(jnp.int32), n)))(sizes)
    plan = gpu_weights.Plan(
        (batch, groups, -(-k // blocks.rows), -(-m // wide)),
        stages_for(blocks, gpu_weights.DEPTH, x.dtype), blocks,
    )  # fmt: skip
    ready = [jnp.moveaxis(ends, 0, 1), *(filled_up(a, {1: ROWS, 2: depth}) for a in (x, dy))]
    whole = up(k, ROWS), up(m, ROW // jnp.dtype(dtype).itemsize)
    found = gpu_weights.call(plan, ready, (batch, groups, *whole), dtype, spec.how.gpu.cores)
    return found if whole == (k, m) else found[:, :, :k, :m]
