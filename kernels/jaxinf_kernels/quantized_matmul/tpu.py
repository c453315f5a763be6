"""Products of quantised matrices on a TPU's matrix units.

A grid step multiplies a block of x by a block of w. Elements that a matrix unit does not take, or
whose scales differ along what is summed over, are widened in the core's own memory.
"""

from functools import partial
from math import lcm
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxinf_kernels.chips import Chip
from jaxinf_kernels.operation import How
from jaxinf_kernels.quantized_matmul.backward import Products
from jaxinf_kernels.quantized_matmul.blocks import (
    BACK,
    ELEMENTS,
    SINGLE,
    SPREAD,
    SUMMED,
    WIDENED,
    Blocks,
    blocks_for,
    depth_of,
)
from jaxinf_kernels.quantized_matmul.factors import Factor, factor, summed
from jaxinf_kernels.quantized_matmul.inputs import (
    Inputs,
    block_of_w,
    block_of_x,
    loads_e2m1,
    memory,
)
from jaxinf_kernels.quantized_matmul.problem import DEFAULT, Operands, Problem, finish
from jaxinf_kernels.quantized_matmul.tpu_back import back
from jaxinf_kernels.quantized_matmul.xla import every
from jaxinf_kernels.tiles import LANES, precise

EXACT = 1024
"""Products of elements of eight bits whose sum float32 holds without rounding."""


class Plan(NamedTuple):
    """The static part of a kernel."""

    x: Any
    """The formats of the two matrices."""
    w: Any
    of: int
    """Of sparse weights, how many are in a group."""
    blocks: int
    """Sums that a grid step scales one by one; 0 where elements are scaled first."""
    unit: tuple[Any, Any]
    """Dtypes that are multiplied."""
    total: Any
    """Dtype of sums over grid steps."""
    activation: str | None
    steps: int


def multiply(
    *arrays: Array, spec: Problem, blocks: Blocks | None = None, interpret: Any = False
) -> tuple[Array]:
    """Return the product [B, N, M]."""
    given = spec.operands(arrays)
    x, w = factor(spec.x, given.x, -1), factor(spec.w, given.w, -2)
    found = product(
        x, w, given.bias, dtype=spec.pairs(given), out=spec.dtype, activation=spec.activation,
        how=spec.how._replace(blocks=blocks or spec.how.blocks), interpret=interpret,
    )  # fmt: skip
    return (every(found, arrays),)


def products(interpret: Any = False) -> Products:
    """Return the products of a reverse rule."""

    def forward(given: Operands, spec: Problem) -> Array:
        return multiply(*spec.flat(given), spec=spec, interpret=interpret)[0]

    def sums(x: Factor, w: Factor, dtype: Any, how: How) -> Array:
        return product(x, w, dtype=dtype, how=how, interpret=interpret)

    def transposed(g: Array, w: Factor, dtype: Any, how: How) -> Array:
        g = (g if w.whole is None else g * w.whole).astype(dtype)
        chip = how.known
        return back(g, w, how.blocks or blocks_for(chip, BACK), chip, interpret=interpret)

    return Products(forward, sums, transposed)


def product(
    x: Factor, w: Factor, bias: Array | None = None, *, dtype: Any, out: Any = jnp.float32,
    activation: str | None = None, how: How = DEFAULT, interpret: Any = False,
) -> Array:  # fmt: skip
    """Multiply two factors.

    Args:
      x: [B, N, K]; a batch of one on either side serves all of the other.
      w: [B, K, M].
      bias: [B, M].
      dtype: that elements are widened to where they are scaled first.
      out: the result's dtype.
      activation: by name.
      how: the chip and sizes of blocks.
      interpret: as ``pallas_call`` takes it.

    Returns:
      [B, N, M].
    """
    batch = max(a.shape[0] for a in (x.elements, w.elements, bias) if a is not None)
    whole = batch, x.elements.shape[1], w.elements.shape[-1]
    alone = w.elements.shape[0] == 1 and (bias is None or bias.shape[0] == 1)
    if alone and batch > 1:  # rows of all the batch are multiplied by one w
        x = x.joined()
    found = _product(x, w, bias, dtype, out, activation, how, interpret)
    return found.reshape(whole)


def _product(
    x: Factor, w: Factor, bias: Array | None, dtype: Any, out: Any, activation: str | None,
    how: How, interpret: Any,
) -> Array:  # fmt: skip
    chip, blocks = how.known, summed(x, w)
    sizes = how.blocks or blocks_for(chip, _kind(x, blocks, dtype))
    arrays = x.elements, w.elements, bias
    batch = max(a.shape[0] for a in arrays if a is not None)
    (n, k), m = x.elements.shape[1:], w.elements.shape[-1]
    if not batch * n * m:
        return jnp.zeros((batch, n, m), out)
    multiple = lcm(LANES, x.size, w.size, 32 * max(1, w.of))
    depth, full = depth_of(k, sizes.depth, multiple)
    steps = full // depth
    per = 0 if blocks is None else 1 if blocks == 1 else blocks * depth // k
    whole = blocks is not None and x.form is not None and x.form.whole
    plan = Plan(
        x.form, w.form, w.of, per, _unit(x, w, blocks, dtype, chip, bool(interpret)),
        jnp.int32 if whole and blocks == 1 else jnp.float32, activation, steps,
    )  # fmt: skip
    rows, columns = min(sizes.rows, n), min(sizes.columns, m)
    inputs = Inputs(rows, columns, depth, steps, loads_e2m1(chip))
    inputs.x(x, full - k, w.of)
    inputs.w(w, full - k)
    inputs.column("bias", bias if bias is None else bias[:, None])
    named = dict(zip(inputs.names, inputs.arrays, strict=True))
    return pl.pallas_call(
        partial(_kernel, plan, inputs.names),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=0,
            grid=(batch, pl.cdiv(n, rows), pl.cdiv(m, columns), steps),
            in_specs=inputs.specs,
            out_specs=pl.BlockSpec((1, rows, columns), lambda b, i, j, s: (b, i, j)),
            scratch_shapes=[pltpu.VMEM((rows, columns), plan.total)] * (steps > 1),
        ),
        out_shape=jax.ShapeDtypeStruct((batch, n, m), out),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=memory(chip),
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * n * m * k,
            transcendentals=batch * n * m if activation in ("gelu", "silu") else 0,
            bytes_accessed=sum(a.size * a.dtype.itemsize for a in named.values())
            + batch * n * m * jnp.dtype(out).itemsize,
        ),
        interpret=interpret,
        name="quantized_matmul",
    )(*inputs.arrays)


def _kind(x: Factor, blocks: int | None, dtype: Any) -> str:
    """Return the kind of product, by which sizes of blocks are chosen."""
    if blocks is not None:
        return ELEMENTS if blocks == 1 else SUMMED
    if dtype != jnp.bfloat16:
        return SINGLE
    return WIDENED if x.inner is None else SPREAD


def _unit(
    x: Factor, w: Factor, blocks: int | None, dtype: Any, chip: Chip | None, interpret: bool
) -> Any:
    """Return the dtypes that are multiplied: on a chip that is not known, those of most.

    Interpret mode cannot multiply int4; as int8 it is the same to the bit.
    """
    if blocks is None or x.form is None or w.form is None:
        return dtype, dtype
    if x.form.whole:
        if (
            chip is not None
            and not interpret
            and x.form.bits == w.form.bits == 4
            and chip.pays("int4")
        ):
            return jnp.int4, jnp.int4
        small = chip is None or "int8" in chip.speed
        return (jnp.int8, jnp.int8) if small else (jnp.bfloat16, jnp.bfloat16)
    if chip is not None and chip.pays("e4m3") and chip.pays("e5m2"):
        return x.form.dtype, w.form.dtype
    return jnp.bfloat16, jnp.bfloat16


def _sums(plan: Plan, refs: dict[str, Any]) -> Array:
    """Return the products of a grid step."""
    x = block_of_x(refs, plan.x, plan.of, not plan.blocks, plan.unit[0])
    w = block_of_w(refs, plan.w, plan.of, not plan.blocks, plan.unit[1])
    if plan.blocks < 2:
        return _dot(plan, x, w)
    size = x.shape[1] // plan.blocks
    total: Any = 0.0
    for g in range(plan.blocks):
        part = slice(g * size, (g + 1) * size)
        one = _dot(plan, x[:, part], w[part]).astype(jnp.float32)
        if "x scales" in refs:
            at = g * refs["x scales"].shape[3] // plan.blocks
            one = one * refs["x scales"][0, 0, :, at : at + 1].astype(jnp.float32)
        if "w scales" in refs:
            at = g * refs["w scales"].shape[2] // plan.blocks
            one = one * refs["w scales"][0, 0, at : at + 1, :].astype(jnp.float32)
        total += one
    return total


def _dot(plan: Plan, x: Array, w: Array) -> Array:
    """Multiply; whole numbers are summed without rounding on every chip."""
    dot = partial(
        jax.lax.dot_general, dimension_numbers=(((1,), (0,)), ((), ())), precision=precise(x.dtype)
    )
    whole = plan.blocks and plan.x.whole
    if not whole or x.dtype != jnp.bfloat16:
        return dot(x, w, preferred_element_type=jnp.int32 if whole else jnp.float32)
    total: Any = 0
    for begin in range(0, x.shape[1], EXACT):
        part = slice(begin, begin + EXACT)
        total += dot(x[:, part], w[part], preferred_element_type=jnp.float32).astype(jnp.int32)
    return total


def _kernel(plan: Plan, names: list[str], *refs: Any) -> None:
    """Multiply a block of rows by a block of columns; the last of a sum scales and stores it."""
    inputs = dict(zip(names, refs, strict=False))
    out_ref, *scratch = refs[len(names) :]

    def store(total: Array) -> None:
        scales = [inputs[name][0] if name in inputs else None for name in ("rows", "columns")]
        bias = inputs["bias"][0] if "bias" in inputs else None
        found = finish(total.astype(jnp.float32), scales, bias, plan.activation)
        out_ref[0] = found.astype(out_ref.dtype)

    if plan.steps == 1:
        store(_sums(plan, inputs))
        return
    (total_ref,) = scratch
    step = pl.program_id(3)

    @pl.when(step == 0)
    def start() -> None:
        total_ref[...] = jnp.zeros(total_ref.shape, total_ref.dtype)

    total_ref[...] += _sums(plan, inputs)

    @pl.when(step == plan.steps - 1)
    def end() -> None:
        store(total_ref[...])
