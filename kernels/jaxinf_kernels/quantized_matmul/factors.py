"""The two matrices of a product as a kernel takes them: elements, scales within, scales without."""

from math import lcm
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.formats import Format, quantise
from jaxinf_kernels.quantized_matmul.problem import Side
from jaxinf_kernels.quantized_matmul.sparse import spread

DEEP = 128
"""Elements that share a scale from which on they are summed before they are scaled: the rows of a
matrix unit."""


class Factor(NamedTuple):
    """One of the two matrices: its numbers are elements times inner times whole."""

    axis: int
    """Along which lies what is summed over: -1 of x, -2 of w."""
    elements: Array
    """[B, N, K] or [B, K, M]; of sparse ones [B, kept, K / of, M]."""
    places: Array | None
    """[B, K / of, M], of sparse ones."""
    inner: Array | None
    """[B, N, blocks] or [B, blocks, M], where there are several along K."""
    whole: Array | None
    """[B, N, 1] or [B, 1, M] float32: what all of K shares; None of floats."""
    form: Format | None
    of: int = 0

    @property
    def blocks(self) -> int:
        """How many along K have a scale of their own."""
        return 1 if self.inner is None else self.inner.shape[self.axis]

    @property
    def depth(self) -> int:
        """K."""
        return self.elements.shape[self.axis] * max(1, self.of)

    @property
    def size(self) -> int:
        """Of the blocks that have a scale of their own; 1 where all along K share it."""
        return 1 if self.inner is None else self.depth // self.blocks

    @property
    def dense(self) -> Array:
        """Elements with their zeros."""
        if self.places is None:
            return self.elements
        return spread(self.elements, self.places, self.of)

    def joined(self) -> "Factor":
        """Return the rows of a batch of x as one matrix."""

        def join(a: Array | None) -> Array | None:
            return None if a is None else a.reshape(1, -1, a.shape[2])

        elements = self.elements.reshape(1, -1, self.elements.shape[2])
        return self._replace(elements=elements, inner=join(self.inner), whole=join(self.whole))

    def numbers(self, dtype: Any) -> Array:
        """Elements times inner scales, rounded once to a dtype."""
        found = self.dense
        if self.inner is None:
            return found.astype(dtype)
        exact = jnp.promote_types(dtype, jnp.float32)
        scales = jnp.repeat(self.inner.astype(exact), self.depth // self.blocks, axis=self.axis)
        return (found.astype(exact) * scales).astype(dtype)


def factor(side: Side, arrays: dict[str, Array], axis: int) -> Factor:
    """Return one side's arrays as a factor; floats are quantised where they are to be."""
    form, places = side.form, arrays.get("places")
    if form is None:
        return Factor(axis, arrays["floats"], places, None, None, None, side.of)
    if side.held:
        elements, scales, outer = (arrays.get(n) for n in ("elements", "scales", "outer"))
        assert elements is not None
        assert scales is not None
        return held(elements, scales, outer, form, axis, places, side.of)
    found = jax.vmap(lambda a: quantise(a, form, axis=axis))(arrays["floats"])
    return held(found.elements, found.scales, found.outer, form, axis)


def held(
    elements: Array, scales: Array, outer: Array | None, form: Format, axis: int,
    places: Array | None = None, of: int = 0,
) -> Factor:  # fmt: skip
    """Return arrays in a format as a factor: scales that all share are put outside of sums."""
    inner = None
    shape = list(scales.shape)
    shape[axis] = 1
    if scales.shape[axis] == 1:
        whole = scales.astype(jnp.float32)
    else:
        # scales of up to eight bits are exact in bfloat16
        inner = scales.astype(scales.dtype if scales.dtype.itemsize > 1 else jnp.bfloat16)
        whole = jnp.ones(shape, jnp.float32)
    if outer is not None:
        whole = whole * outer.astype(jnp.float32)[:, None, None]
    return Factor(axis, elements, places, inner, whole, form, of)


def summed(x: Factor, w: Factor) -> int | None:
    """Return how many blocks of elements are summed as they are, each of them scaled afterwards.

    None where elements are multiplied by their scales first: of floats, of elements of four bits
    that are not whole numbers, and where blocks are smaller than a matrix unit.
    """
    if x.form is None or w.form is None:
        return None
    whole = x.form.whole and w.form.whole
    eight = not (x.form.whole or w.form.whole) and x.form.bits == w.form.bits == 8
    blocks = lcm(x.blocks, w.blocks)
    if not (whole or eight):
        return None
    if blocks == 1:
        return 1
    fits = x.depth % blocks == 0 and (x.depth // blocks) % DEEP == 0
    return blocks if fits and not w.of else None
