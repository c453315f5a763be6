"""Products of quantised matrices on an NVIDIA GPU's tensor cores: what is asked of the kernels.

Tensor cores take w's elements of eight bits by columns, so that they are transposed first. That is
a copy, which the compiler leaves out for weights that are held by columns, [M, K], and transposed
in the program itself. Elements that are widened are read as they are held.

Sums differ from those on a TPU in one thing: a Hopper's tensor cores sum products of FP8 in fewer
bits than float32 has, so that they sum over 128 of them, and sums of these are in float32.
"""

from math import gcd
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.blackwell import scales_ready
from jaxinf_kernels.operation import How, Rule
from jaxinf_kernels.quantized_matmul import gpu_blackwell, gpu_hopper
from jaxinf_kernels.quantized_matmul.backward import PLAIN, Products
from jaxinf_kernels.quantized_matmul.factors import DEEP, Factor, factor, summed
from jaxinf_kernels.quantized_matmul.gpu_blocks import (
    ELEMENTS,
    FINE,
    SUMMED,
    TURNED,
    WIDENED,
    Blocks,
    bits,
    blocks_for,
    splits_for,
    stages_for,
)
from jaxinf_kernels.quantized_matmul.problem import DEFAULT, Operands, Problem, finish
from jaxinf_kernels.quantized_matmul.widen import code
from jaxinf_kernels.quantized_matmul.xla import every
from jaxinf_kernels.tiles import filled_up, up

ROWS, ROW = 8, 128
"""Rows, and bytes of a row, in a tile of shared memory."""
LEAST = 16
"""Rows of w that share a scale, of which a block is a multiple: what a warpgroup widens at once."""


def refusal(spec: Problem | Rule, arrays: Any) -> str | None:
    """Return which constraint of the kernels is violated, and what mends that."""
    problem: Any = getattr(spec, "spec", spec)
    given = problem.operands(arrays[: len(problem.names)])
    chip = problem.how.known
    if chip is not None and chip.platform != "cuda":
        return f"there is no kernel for {chip.name}: name chip='h100', 'h200' or 'b200'"
    if problem.w.of:
        return (
            "weights without their zeros are not multiplied by tensor cores: take Sparse.dense(), "
            "which holds the zeros too"
        )
    both = (problem.x, given.x), (problem.w, given.w)
    wide = {a["floats"].dtype for side, a in both if side.form is None} - {jnp.dtype("bfloat16")}
    if wide:
        return (
            f"tensor cores do not multiply {wide.pop()}: cast with astype(jnp.bfloat16), or name a "
            "format for activations"
        )
    sizes = _size(problem.x, given.x, 2), _size(problem.w, given.w, 1)
    for name, size in zip("xw", sizes, strict=True):
        if size % LEAST:
            return (
                f"blocks of {name} that share a scale have a multiple of {LEAST} numbers, not "
                f"{size}: quantise(..., block={up(size, LEAST)})"
            )
    if problem.how.gpu.blackwell and not _taken_by_blackwell(problem.x.form, problem.w.form, sizes):
        return (
            f"Blackwell's tensor cores do not multiply {problem.x.form or 'floats'} by "
            f"{problem.w.form or 'floats'} in blocks of {sizes}: give both matrices one format, "
            "with one scale or in blocks of 128"
        )
    return None


def _size(side: Any, arrays: Any, axis: int) -> int:
    """Return how many numbers share a scale; 0 where all do."""
    if side.held and arrays["scales"].shape[axis] > 1:
        return arrays["elements"].shape[axis] // arrays["scales"].shape[axis]
    if side.held or side.form is None:
        return 0
    return side.form.block or 0


def _taken_by_blackwell(x: Any, w: Any, sizes: tuple[int, int]) -> bool:
    """Whether elements are multiplied as they are."""
    if x is None or w is None:
        return x is w
    deep = all(size % DEEP == 0 for size in sizes)
    alike = (x.whole and w.whole) or (not (x.whole or w.whole) and x.bits == w.bits == 8)
    return (alike and deep) or _fine(x, w, sizes)


def _fine(x: Any, w: Any, sizes: tuple[int, int]) -> bool:
    """Whether scales of small blocks are the tensor cores' own."""
    own = x is not None and x.scale != jnp.float32 and x.block is not None
    return own and x == w and sizes == (x.block, x.block)


def multiply(*arrays: Array, spec: Problem, blocks: Blocks | None = None) -> tuple[Array]:
    """Return the product [B, N, M]."""
    given = spec.operands(arrays)
    x, w = factor(spec.x, given.x, -1), factor(spec.w, given.w, -2)
    found = product(
        x, w, given.bias, dtype=spec.pairs(given), out=spec.dtype, activation=spec.activation,
        how=spec.how._replace(blocks=blocks or spec.how.blocks),
    )  # fmt: skip
    return (every(found, arrays),)


def products() -> Products:
    """Return the products of a reverse rule."""

    def forward(given: Operands, spec: Problem) -> Array:
        return multiply(*spec.flat(given), spec=spec)[0]

    def sums(x: Factor, w: Factor, dtype: Any, how: How) -> Array:
        return product(x, w, dtype=dtype, how=how)

    def transposed(g: Array, w: Factor, dtype: Any, how: How) -> Array:
        if how.gpu.blackwell or dtype != jnp.bfloat16:  # of which there is no kernel
            return PLAIN.back(g, w, dtype, how)
        return back(g, w, dtype, how)

    return Products(forward, sums, transposed)


def product(
    x: Factor, w: Factor, bias: Array | None = None, *, dtype: Any, out: Any = jnp.float32,
    activation: str | None = None, how: How = DEFAULT,
) -> Array:  # fmt: skip
    """Multiply two factors: of :func:`jaxinf_kernels.quantized_matmul.tpu.product`'s arguments."""
    batch = max(a.shape[0] for a in (x.elements, w.elements, bias) if a is not None)
    whole = batch, x.elements.shape[1], w.elements.shape[-1]
    if not batch * whole[1] * whole[2]:
        return jnp.zeros(whole, out)
    alone = w.elements.shape[0] == 1 and (bias is None or bias.shape[0] == 1)
    if alone and batch > 1:  # rows of all the batch are multiplied by one w
        x = x.joined()
    named: dict[str, Array | None] = {
        "rows": None if x.whole is None else x.whole[..., 0],
        "columns": None if w.whole is None else w.whole[:, 0],
        "bias": bias,
    }
    blocks = summed(x, w)
    if how.gpu.blackwell and blocks is None and _fine(x.form, w.form, (x.size, w.size)):
        found = _of_fine(x, w, named, out, activation, how)
    elif blocks is not None:
        found = _of_elements(x, w, blocks, named, out, activation, how)
    else:
        found = _of_floats(x, w, dtype, named, out, activation, how)
    return found.reshape(whole)


def _of_elements(
    x: Factor, w: Factor, blocks: int, named: dict[str, Array | None], out: Any,
    activation: str | None, how: How,
) -> Array:  # fmt: skip
    """Multiply elements of eight bits; those of w by columns, as tensor cores need them."""
    assert x.form is not None
    whole = x.form.whole
    ex, ew = (a.elements.astype(jnp.int8) if whole else a.elements for a in (x, w))
    arrays = {"x": ex, "w": jnp.swapaxes(ew, 1, 2), **named}
    # Hopper sums FP8 in fewer bits than float32 has: no further than over a step
    kind = ELEMENTS if blocks == 1 and (whole or how.gpu.blackwell) else SUMMED
    sizes = x.size, w.size
    if x.inner is not None:
        arrays["x scales"] = jnp.swapaxes(x.inner, 1, 2)
    if w.inner is not None:
        arrays["w scales"] = w.inner
    unit = jnp.int32 if whole else jnp.float32
    return _call(kind, arrays, None, unit, DEEP, sizes, out, activation, how, by_columns=True)


def _of_fine(
    x: Factor, w: Factor, named: dict[str, Array | None], out: Any, activation: str | None, how: How
) -> Array:
    """Multiply elements in blocks whose scales the tensor cores multiply, too."""
    assert x.form is not None
    assert x.inner is not None
    assert w.inner is not None
    depth = ROW * 8 // x.form.bits
    rows = x.inner.astype(x.form.scale), jnp.swapaxes(w.inner, 1, 2).astype(x.form.scale)
    fine = [scales_ready(a, x.size, depth) for a in rows]
    arrays = {
        "x": x.elements, "w": jnp.swapaxes(w.elements, 1, 2), "x fine": fine[0], "w fine": fine[1],
        **named,
    }  # fmt: skip
    return _call(
        FINE, arrays, None, jnp.float32, depth, (x.size, w.size), out, activation, how,
        by_columns=True,
    )  # fmt: skip


def _of_floats(
    x: Factor, w: Factor, dtype: Any, named: dict[str, Array | None], out: Any,
    activation: str | None, how: How,
) -> Array:  # fmt: skip
    """Multiply floats, or elements that are widened to them: those of w in the kernel."""
    arrays = {"x": x.numbers(dtype), "w": code(w.elements, native=False), **named}
    if w.form is None:
        return _call(
            ELEMENTS, arrays, None, jnp.float32, 64, (1, 1), out, activation, how, by_columns=False
        )
    if w.inner is not None:
        arrays["w scales"] = w.inner
    sizes = 1, w.size
    return _call(
        WIDENED, arrays, w.form, jnp.float32, 64, sizes, out, activation, how, by_columns=False
    )


def back(g: Array, w: Factor, dtype: Any, how: How) -> Array:
    """Return cotangents [B, N, M] times the transpose of w, [B, N, K] in float32."""
    g = (g if w.whole is None else g * w.whole).astype(dtype)
    shape = max(g.shape[0], w.elements.shape[0]), g.shape[1], w.depth
    if not g.size:
        return jnp.zeros(shape, jnp.float32)
    if w.elements.shape[0] == 1:
        g = g.reshape(1, -1, g.shape[2])
    arrays: dict[str, Array | None] = {"x": g, "w": code(w.elements, native=False)}
    if w.inner is not None:
        arrays["w scales"] = w.inner
    sizes = 1, w.size
    found = _call(
        TURNED, arrays, w.form, jnp.float32, 64, sizes, jnp.float32, None, how, by_columns=True
    )
    return found.reshape(shape)


def _call(
    kind: str, given: dict[str, Array | None], form: Any, unit: Any, depth: int,
    sizes: tuple[int, int], out: Any, activation: str | None, how: How, *, by_columns: bool,
) -> Array:  # fmt: skip
    """Plan a kernel and call it; where a sum is spread over blocks of threads, add its parts."""
    arrays = {name: a for name, a in given.items() if a is not None}
    batch = max(a.shape[0] for a in arrays.values())
    x, w = arrays["x"], arrays["w"]
    (n, k), m = x.shape[1:], w.shape[1 if by_columns else 2]
    blocks = how.blocks if isinstance(how.blocks, Blocks) else blocks_for(kind, n, how.gpu)
    wide = gpu_hopper.COMPUTING * blocks.columns
    tiles = batch, -(-n // blocks.rows), -(-m // wide)
    steps, count = -(-k // depth), how.gpu.cores
    splits = splits_for(tiles[0] * tiles[1] * tiles[2], steps, count)
    chunk = blocks.columns if kind == TURNED else depth
    if "w scales" in arrays:
        chunk = gcd(chunk, sizes[1])
    dtype = jnp.dtype(out) if splits == 1 else jnp.dtype(unit)
    stage = (blocks.rows * bits(x.dtype) + wide * bits(w.dtype)) * depth // 8
    if kind == FINE:
        stage += (blocks.rows + wide) * depth // sizes[0]
    fixed = gpu_hopper.COMPUTING * blocks.rows * 128
    if form is not None:
        fixed += gpu_hopper.COMPUTING * 2 * depth * blocks.columns * 2
    later = ("rows", "columns", "bias") if splits > 1 else ()
    names = tuple(name for name in arrays if name not in later)
    plan = gpu_hopper.Plan(
        kind, names, form, unit, None if later else activation,
        (tiles[0] * splits, *tiles[1:]), splits, -(-steps // splits), blocks.rows, blocks.columns,
        depth, stages_for(blocks, stage, fixed), sizes, chunk, by_columns,
    )  # fmt: skip
    ready = [_ready(name, arrays[name], plan) for name in names]
    whole = up(n, ROWS), up(m, ROW // jnp.dtype(dtype).itemsize)
    call = gpu_blackwell.call if how.gpu.blackwell else gpu_hopper.call
    parts = call(plan, ready, (batch * splits, *whole), dtype, count)
    parts = parts if whole == (n, m) else parts[:, :n, :m]
    if splits == 1:
        return parts
    total = jnp.sum(parts.reshape(batch, splits, n, m), axis=1)
    row, column, bias = (arrays.get(name) for name in ("rows", "columns", "bias"))
    scales = None if row is None else row[..., None], None if column is None else column[:, None]
    shift = None if bias is None else bias[:, None]
    return finish(total.astype(jnp.float32), scales, shift, activation).astype(out)


def _ready(name: str, a: Array, plan: gpu_hopper.Plan) -> Array:
    """Fill up an array with zeros to what copies ask for."""
    last = a.ndim - 1
    if name == "x":
        return filled_up(a, {1: ROWS, last: gpu_hopper.swizzle(plan.depth, a.dtype)[0]})
    if name == "w":
        width = plan.depth if plan.by_columns else plan.columns
        return filled_up(a, {1: ROWS, last: gpu_hopper.swizzle(width, a.dtype)[0]})
    if name in ("x fine", "w fine"):
        return a
    if name in ("rows", "x scales"):
        return filled_up(a, {last: plan.rows})
    return filled_up(a, {last: plan.depth if plan.kind == TURNED else wide_of(plan)})


def wide_of(plan: gpu_hopper.Plan) -> int:
    """Return the columns of a tile."""
    return gpu_hopper.COMPUTING * plan.columns
