"""What a kernel is given: arrays and which of their blocks a grid step sees."""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from jaxinf_kernels.chips import Chip
from jaxinf_kernels.quantized_matmul.factors import Factor
from jaxinf_kernels.quantized_matmul.widen import (
    code,
    columns_scaled,
    filled,
    folded,
    rows_scaled,
    widen,
)


def loads_e2m1(chip: Chip | None) -> bool:
    """Whether a chip loads elements of E2M1; others are given their bits."""
    return chip is not None and "mxfp4" in chip.speed


def memory(chip: Chip | None) -> int | None:
    """Return the bytes that a kernel may take of a core's own memory; None for the default."""
    return None if chip is None else chip.memory * 3 // 4


class Inputs:
    """A kernel's arrays, in the shapes that its blocks ask for."""

    def __init__(
        self, rows: int, columns: int, depth: int, steps: int, native: bool, turned: bool = False
    ):
        """Take the sizes of blocks, and how many there are of what is summed over.

        ``native`` is whether the chip loads elements of E2M1. Places are by the numbers of rows,
        columns and what is summed over; where ``turned``, the last two change places in the grid.
        """
        self.rows, self.columns, self.depth, self.steps = rows, columns, depth, steps
        self.native, self.turned = native, turned
        self.names: list[str] = []
        self.specs: list[Any] = []
        self.arrays: list[Array] = []

    def add(self, name: str, a: Array, block: tuple[int, ...], at: Any) -> None:
        """Add an array with the place of a block's first number in units of blocks."""
        own = 1 if a.shape[0] > 1 else 0  # whether it has a batch of its own
        self.names.append(name)
        self.arrays.append(a)
        place = (lambda i, j, s: at(i, s, j)) if self.turned else at
        self.specs.append(pl.BlockSpec(block, lambda b, i, j, s: (own * b, *place(i, j, s))))

    def x(self, x: Factor, pad: int, of: int) -> None:
        """Add rows; ``pad`` zeros fill up what is summed over."""
        elements = folded(_filled(code(x.elements, self.native), 2, pad, 0), self.depth, of)
        self.add("x", elements, (1, self.rows, self.depth), lambda i, j, s: (i, s))
        if x.inner is not None:
            scales = _filled(x.inner, 2, pad * x.blocks // x.depth, 1)
            scales = scales.reshape(*scales.shape[:2], self.steps, -1)
            scales = jnp.swapaxes(scales, 1, 2)
            block = 1, 1, self.rows, scales.shape[3]
            self.add("x scales", scales, block, lambda i, j, s: (s, i, 0))
        if x.whole is not None:
            self.add("rows", x.whole, (1, self.rows, 1), lambda i, j, s: (i, 0))

    def w(self, w: Factor, pad: int) -> None:
        """Add columns."""
        count, width = max(1, w.of), self.columns
        elements = _filled(code(w.elements, self.native), -2, pad // count, 0)
        if w.places is None:
            self.add("w", elements, (1, self.depth, width), lambda i, j, s: (s, j))
        else:
            groups = self.depth // count
            block = 1, elements.shape[1], groups, width
            self.add("w", elements, block, lambda i, j, s: (0, s, j))
            places = _filled(w.places, 1, pad // count, 0)
            self.add("places", places, (1, groups, width), lambda i, j, s: (s, j))
        if w.inner is not None:
            scales = _filled(w.inner, 1, pad * w.blocks // w.depth, 1)
            scales = scales.reshape(scales.shape[0], self.steps, -1, scales.shape[2])
            block = 1, 1, scales.shape[2], width
            self.add("w scales", scales, block, lambda i, j, s: (s, 0, j))
        self.column("columns", w.whole)

    def column(self, name: str, a: Array | None) -> None:
        """Add a number for each column, [B, 1, M], where there is one."""
        if a is not None:
            self.add(name, a, (1, 1, self.columns), lambda i, j, s: (0, j))


def _filled(a: Array, axis: int, count: int, value: int) -> Array:
    """Fill up an axis at its end."""
    if not count:
        return a
    pad = [(0, 0)] * a.ndim
    pad[axis] = (0, count)
    return jnp.pad(a, pad, constant_values=value)


def block_of_x(refs: dict[str, Any], form: Any, of: int, scaled: bool, dtype: Any) -> Array:
    """Return a block of rows as it is multiplied, with its scales where ``scaled`` says."""
    elements = refs["x"][0]
    if not scaled or "x scales" not in refs:
        return widen(elements, form, dtype)
    wide = widen(elements, form, jnp.float32)
    return columns_scaled(wide, refs["x scales"][0, 0], of).astype(dtype)


def block_of_w(refs: dict[str, Any], form: Any, of: int, scaled: bool, dtype: Any) -> Array:
    """Return a block of columns as it is multiplied; sparse ones with their zeros, in planes."""
    scaled = scaled and "w scales" in refs
    if not of and not scaled:
        return widen(refs["w"][0], form, dtype)
    planes = [refs["w"][0]] if not of else [refs["w"][0, t] for t in range(refs["w"].shape[1])]
    values = [widen(a, form, jnp.float32) for a in planes]
    if scaled:
        values = [rows_scaled(a, refs["w scales"][0, 0]) for a in values]
    return (filled(values, refs["places"][0], of) if of else values[0]).astype(dtype)
