"""What low-bit attention's kernels for GPUs have in common: their arrays, and how these come."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxinf_kernels import hopper
from jaxinf_kernels.attention.gpu_blocks import LOG2E, LOWEST, WIDTH, of, padded
from jaxinf_kernels.attention.problem import Operands
from jaxinf_kernels.attention.schedule import Sizes
from jaxinf_kernels.lowbit_attention.prepare import Prepared
from jaxinf_kernels.lowbit_attention.problem import LowBit
from jaxinf_kernels.tiles import filled_up


def inputs_of(
    spec: LowBit, given: Operands, ready: Prepared, sizes: Sizes
) -> tuple[list[Array], list[str]]:
    """Return the kernel's arrays, filled up to whole blocks, and their names.

    Values of eight bits come transposed: what a product sums over is then contiguous.
    """
    elements = given._replace(q=ready.q.elements, k=ready.k.elements, v=ready.v.elements)
    filled, names = padded(spec.asked, elements, sizes.rows, sizes.columns)
    made = {
        "q scale": filled_up(ready.q.scale, {2: sizes.rows}),
        "k scale": filled_up(ready.k.scale, {2: sizes.columns}),
    }
    if spec.precision.pv is not None:
        filled[2] = filled[2].swapaxes(2, 3)
        made["v scale"] = filled_up(ready.v.scale, {2: WIDTH})
    if ready.shift is not None and (spec.asked.soft_cap is not None or given.sinks is not None):
        made["shift"] = filled_up(ready.shift, {2: sizes.rows})
    return [*filled, *made.values()], [*names, *made]


def ceil(x: Any) -> Any:
    """Return the next whole number: Mosaic has the nearest."""
    near = jnp.round(x)
    return jnp.where(near < x, near + 1, near)


def of_block(
    inputs: dict[str, Any], at: tuple[Any, Any], part: Any, name: str, *, layout: Any
) -> Any:
    """Return the numbers for a block's rows, or columns, of an example's head."""
    ref = inputs[name]
    return plgpu.load(ref.at[of(ref, at[0]), at[1], part], layout=layout, optimized=False)


def begun(
    spec: LowBit, inputs: dict[str, Any], at: tuple[Any, Any], shift: Any, rows: int, layout: Any
) -> tuple[Any, Any]:
    """Return what weights of a block's rows are relative to, and their sums, before any visit.

    Args:
      spec: of the problem.
      inputs: arrays in device memory by name, of which sinks have weights, too.
      at: numbers of the example and of the head.
      shift: what smoothing keys took from the rows' products; None without.
      rows: of the block.
      layout: of a number for each row.
    """
    problem, precision = spec.asked, spec.precision
    top, total = (hopper.filled((rows,), x, layout) for x in (LOWEST, 0.0))
    if "sinks" not in inputs:
        return top, total
    sink = inputs["sinks"][of(inputs["sinks"], at[0]), at[1]] * LOG2E
    sink = plgpu.layout_cast(jnp.broadcast_to(sink, (rows,)), layout)
    if shift is not None and problem.soft_cap is None:
        sink = sink - shift * (problem.scale * LOG2E)
    top = ceil(sink) if precision.exponents else sink
    return top, jnp.exp2(sink - (top - precision.log2_peak))


def bring(
    inputs: dict[str, Any],
    rings: Any,
    scales: Any,
    at: tuple[Any, Any],
    places: Any,
    ends: tuple[Any, Any],
) -> None:
    """Bring keys with their scales, and values, of a line's visits, as their places become free.

    Args:
      inputs: arrays in device memory by name.
      rings: of keys and of values, as in attention's ``bring``; values of eight bits lie
        [stages, width, block].
      scales: [stages, ...]: places of the keys' scales, which arrive where keys do: a number for
        each key, or ``"k lines"``, [B or 1, groups, blocks, ...], of keys in blocks.
      at: numbers of the example and of the group.
      places: [T]: the number of the block that a visit is of.
      ends: the first visit, and the one after the last.
    """
    plgpu.set_max_registers(hopper.BRINGING, action="decrease")
    (_, k, k_full, k_free), (_, v, v_full, v_free) = rings
    stages, size = k.shape[:2]
    keys, values = (inputs[name].at[of(inputs[name], at[0]), at[1]] for name in "kv")
    whole = "k lines" in inputs
    factors = inputs["k lines" if whole else "k scale"]
    factors = factors.at[of(factors, at[0]), at[1]]

    def visit(step: Any, _: None) -> None:
        slot = hopper.slot(step - ends[0], stages)
        part = pl.ds(places[step] * size, size)
        again = step - ends[0] >= stages
        pl.when(again)(partial(plgpu.barrier_wait, k_free.at[slot]))
        plgpu.copy_gmem_to_smem(keys.at[part], k.at[slot], k_full.at[slot])
        some = pl.ds(places[step], 1) if whole else part
        plgpu.copy_gmem_to_smem(factors.at[some], scales.at[slot], k_full.at[slot])
        pl.when(again)(partial(plgpu.barrier_wait, v_free.at[slot]))
        block = values.at[part] if inputs["v"].dtype.itemsize > 1 else values.at[:, part]
        plgpu.copy_gmem_to_smem(block, v.at[slot], v_full.at[slot])

    jax.lax.fori_loop(ends[0], ends[1], visit, None)
