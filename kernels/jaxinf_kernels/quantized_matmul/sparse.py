"""Weights of which at most N in M consecutive ones along an axis are not zero."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf_kernels.formats import Format, Quantised, quantise

WIDTHS = ((8, jnp.int8), (16, jnp.int16), (32, jnp.int32))
"""Bits of a group's places, and the smallest dtype that holds them."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sparse:
    """Weights [k, m] without their zeros; a pytree.

    What the groups keep lies in planes, first ones in front: a kernel puts them back by comparing
    places, without moving rows past each other.
    """

    values: Any
    """[kept, k / of, m]: floats, or elements of the format."""
    places: Any
    """[k / of, m]: where in its group each value belongs, in ``step`` bits a value, the first
    lowest; whole numbers of 8, 16 or 32 bits."""
    scales: Any
    """[blocks, m] as in :class:`Quantised`; None for floats."""
    outer: Any
    """A second scale, shape (), of formats of two levels; else None."""
    form: Format | None = field(metadata={"static": True})
    of: int = field(metadata={"static": True})
    """Weights in a group: M."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights with their zeros."""
        _, groups, m = self.values.shape
        return groups * self.of, m

    def dense(self) -> Quantised | Array:
        """Return the weights with their zeros, in the same format."""
        whole = spread(self.values, self.places, self.of)
        if self.form is None:
            return whole
        return Quantised(whole, self.scales, self.outer, self.form, -2)


def step(of: int) -> int:
    """Return the bits that a place in a group takes."""
    return max(1, (of - 1).bit_length())


def spread(values: Array, places: Array, of: int) -> Array:
    """Return [..., k, m] from planes [..., kept, k / of, m] and their places [..., k / of, m]."""
    bits = step(of)
    code = places.astype(jnp.int32)
    zero = jnp.zeros((), values.dtype)
    kept = [jnp.squeeze(v, -3) for v in jnp.split(values, values.shape[-3], axis=-3)]
    found = [(code >> (bits * t)) & (2**bits - 1) for t in range(len(kept))]
    planes = []
    for j in range(of):
        plane = jnp.full(code.shape, zero)
        for value, place in zip(kept, found, strict=True):
            plane = jnp.where(place == j, value, plane)
        planes.append(plane)
    whole = jnp.stack(planes, axis=-2)
    return whole.reshape(*whole.shape[:-3], -1, whole.shape[-1])


def prune(w: Float[Array, "k m"], kept: int = 2, of: int = 4) -> Bool[Array, "k m"]:
    """Return which weights are the ``kept`` largest of their ``of`` consecutive ones along k.

    Args:
      w: the weights.
      kept: N; of equal ones the first are kept.
      of: M, which divides k.

    Raises:
      ValueError: where groups do not divide k, or keep none or more than they have.
    """
    if not 0 < kept <= of or w.shape[0] % of:
        raise ValueError(
            f"{kept} of every {of} cannot be kept of weights of shape {w.shape}: name 1 up to "
            f"{of} of groups that divide the first axis, or pad it with zeros."
        )
    split = jnp.abs(w).reshape(-1, of, w.shape[1])
    order = jnp.argsort(-split, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1, stable=True)
    return (rank < kept).reshape(w.shape)


def sparsify(
    w: Float[Array, "k m"],
    form: Format | None = None,
    *,
    kept: int = 2,
    of: int = 4,
    mask: Bool[Array, "k m"] | None = None,
    key: Array | None = None,
) -> Sparse:
    """Hold weights without all but the largest of each group, in few bits where a format is named.

    Args:
      w: weights [k, m].
      form: their format; None keeps the floats.
      kept: N, the weights that each group keeps.
      of: M, the weights in a group: consecutive ones along k.
      mask: which weights are kept, at most N of a group; by default :func:`prune`'s.
      key: round at random, as in :func:`quantise`.

    Returns:
      :class:`Sparse`; a group that keeps fewer than N has zeros in their stead.

    Raises:
      ValueError: where groups do not divide k, or the format's blocks not the groups.
    """
    chosen = prune(w, kept, of) if mask is None else mask
    if form is not None and form.block is not None and form.block % of:
        raise ValueError(f"groups of {of} must divide blocks of {form.block} that share a scale.")
    whole = jnp.where(chosen, w, 0)
    held = None if form is None else quantise(whole, form, axis=-2, key=key)
    elements = whole if held is None else held.elements
    split = chosen.reshape(-1, of, w.shape[1])
    order = jnp.argsort(~split, axis=1, stable=True)[:, :kept]
    # elements of four bits cannot be gathered everywhere
    wide = elements if elements.dtype.itemsize > 1 else elements.astype(jnp.float32)
    gathered = jnp.take_along_axis(wide.reshape(split.shape), order, axis=1)
    values = jnp.moveaxis(gathered, 1, 0).astype(elements.dtype)
    bits = step(of)
    width = next((dtype for size, dtype in WIDTHS if bits * kept < size), None)
    if width is None:
        raise ValueError(f"places of {kept} of {of} do not fit 31 bits: take smaller groups.")
    shifts = (bits * jnp.arange(kept)).reshape(1, kept, 1)
    places = jnp.sum(order << shifts, axis=1).astype(width)
    if held is None:
        return Sparse(values, places, None, None, None, of)
    return Sparse(values, places, held.scales, held.outer, held.form, of)
