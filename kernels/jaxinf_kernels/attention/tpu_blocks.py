"""Where the blocks of attention's operands lie, and in which shapes a TPU's kernels want them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from jaxinf_kernels.attention.masks import COLUMN, ROW, SCALAR
from jaxinf_kernels.attention.problem import Operands, Problem
from jaxinf_kernels.tiles import LANES, filled_up


class Visits:
    """The blocks of a visit: of queries (rows) by keys (columns), or flipped, keys down.

    What has a number for each line down is spread over all lanes, what has one for each line across
    lies in a row.
    """

    def __init__(
        self, spec: Problem, given: Operands, rows: int, columns: int, shared: int,
        flipped: bool = False,
    ):  # fmt: skip
        self.spec, self.given, self.rows, self.columns = spec, given, rows, columns
        self.shared, self.flipped = shared, flipped
        extras = ("bias", "slopes", "sinks")
        named = [name for name, there in zip(extras, spec.given, strict=True) if there]
        self.names = ["q", "k", "v", *named, *[f"mask {i}" for i in range(len(spec.kinds))]]

    def inputs(self, filled: list[Array]) -> tuple[list[Any], list[Array]]:
        """Return block specifications and arrays in the shapes that they ask for."""
        made = [self._input(name, a) for name, a in zip(self.names, filled, strict=True)]
        return [s for s, _ in made], [a for _, a in made]

    def row(self, size: int) -> Any:
        """A block of rows of an array [B, H, N, size]."""
        return pl.BlockSpec((1, 1, self.rows, size), lambda b, h, t, i, j, c: (b, h, i[t], 0))

    def column(self, size: int) -> Any:
        """A block of rows of an array [B, H, M, size]."""
        return pl.BlockSpec((1, 1, self.columns, size), lambda b, h, t, i, j, c: (b, h, j[t], 0))

    def row_of_numbers(self) -> Any:
        """A block of an array [B, H, 1, N]."""
        return pl.BlockSpec((1, 1, 1, self.rows), lambda b, h, t, i, j, c: (b, h, 0, i[t]))

    def cell(self, a: Array) -> Any:
        """A block of an array [B or 1, H or 1, N, M], or [B or 1, H or 1, M, N] where flipped."""
        b0, h0 = (1 if size > 1 else 0 for size in a.shape[:2])
        if self.flipped:
            shape = (1, 1, self.columns, self.rows)
            return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, h0 * h, j[t], i[t]))
        shape = (1, 1, self.rows, self.columns)
        return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, h0 * h, i[t], j[t]))

    def _input(self, name: str, a: Array) -> tuple[Any, Array]:
        b0 = 1 if a.shape[0] > 1 else 0  # whether it has a batch of its own
        shared = self.shared
        if name == "q":
            shape = (1, 1, self.rows, a.shape[3])
            return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, h, i[t], 0)), a
        if name in "kv":
            shape = (1, 1, self.columns, a.shape[3])

            def place(b: Any, h: Any, t: Any, i: Any, j: Any, c: Any) -> tuple[Any, ...]:
                return b0 * b, share(h, shared), j[t], 0

            return pl.BlockSpec(shape, place), a
        if name == "bias":
            a = a.swapaxes(2, 3) if self.flipped else a
            return self.cell(a), a
        if name in ("slopes", "sinks"):
            a = jnp.broadcast_to(a.astype(jnp.float32)[:, :, None, None], (*a.shape, 1, LANES))
            return pl.BlockSpec((1, 1, 1, LANES), lambda b, h, t, i, j, c: (b0 * b, h, 0, 0)), a
        return self._leaf(self.spec.kinds[int(name.split()[1])], a.astype(jnp.int32))

    def _leaf(self, kind: str, a: Array) -> tuple[Any, Array]:
        """Return a leaf of the mask, with an axis for one head."""
        b0 = 1 if a.shape[0] > 1 else 0
        if kind == SCALAR:
            a = jnp.broadcast_to(a[:, None, None, None], (a.shape[0], 1, 1, LANES))
            return pl.BlockSpec((1, 1, 1, LANES), lambda b, h, t, i, j, c: (b0 * b, 0, 0, 0)), a
        if kind not in (ROW, COLUMN):
            a = a.swapaxes(1, 2)[:, None] if self.flipped else a[:, None]
            return self.cell(a), a
        rows = kind == ROW
        size = self.rows if rows else self.columns
        if rows == self.flipped:  # across
            a = a[:, None, None]
            shape = (1, 1, 1, size)
            if rows:
                return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, 0, 0, i[t])), a
            return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, 0, 0, j[t])), a
        a = jnp.broadcast_to(a[:, None, :, None], (a.shape[0], 1, a.shape[1], LANES))
        shape = (1, 1, size, LANES)
        if rows:
            return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, 0, i[t], 0)), a
        return pl.BlockSpec(shape, lambda b, h, t, i, j, c: (b0 * b, 0, j[t], 0)), a


def share(head: Any, shared: int) -> Any:
    """Return the head of keys that a head of queries reads."""
    return head if shared == 1 else jax.lax.div(head, jnp.asarray(shared, head.dtype))


def padded(spec: Problem, given: Operands, rows: int, columns: int) -> list[Array]:
    """Fill rows and columns up to whole blocks."""
    kinds = {ROW: {1: rows}, COLUMN: {1: columns}, SCALAR: {}}
    leaves = [
        filled_up(a, kinds.get(kind, {1: rows, 2: columns}))
        for a, kind in zip(given.leaves, spec.kinds, strict=True)
    ]
    bias = None if given.bias is None else filled_up(given.bias, {2: rows, 3: columns})
    q = filled_up(given.q, {2: rows})
    k, v = (filled_up(a, {2: columns}) for a in (given.k, given.v))
    return spec.flat(given._replace(q=q, k=k, v=v, bias=bias, leaves=tuple(leaves)))


def lanes(a: Array, width: int) -> Array:
    """Return numbers that are the same in all lanes, in ``width`` of them."""
    if width <= LANES:
        return a[:, :width]
    wide = jnp.concatenate([a] * (-(-width // LANES)), axis=1)
    return wide[:, :width]
