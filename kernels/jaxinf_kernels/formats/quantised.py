"""Arrays held in few bits with the scales that their blocks share."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf_kernels.formats.format import Format
from jaxinf_kernels.formats.rounding import cast, stochastic


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantised:
    """An array in a :class:`Format`; a pytree."""

    elements: Any
    """The array's shape."""
    scales: Any
    """The array's shape, but with one entry for each block along the axis."""
    outer: Any
    """A second scale, shape (), of formats of two levels; else None."""
    form: Format = field(metadata={"static": True})
    axis: int = field(metadata={"static": True})
    """Along which blocks lie, counted from the end (negative), so that ``vmap`` keeps it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.elements.shape

    @property
    def block(self) -> int:
        """Elements that share a scale."""
        return self.elements.shape[self.axis] // self.scales.shape[self.axis]

    @property
    def full_scales(self) -> Float[Array, "..."]:
        """Both levels' product in float32, one for each block."""
        scales = self.scales.astype(jnp.float32)
        return scales if self.outer is None else scales * self.outer

    def dequantise(self, dtype: Any = jnp.float32) -> Float[Array, "..."]:
        """Return the numbers, of which elements are multiples of their block's scale."""
        scales = jnp.repeat(self.full_scales, self.block, axis=self.axis)
        return (self.elements.astype(jnp.float32) * scales).astype(dtype)


def quantise(
    x: Float[Array, "..."],
    form: Format,
    *,
    axis: int = -1,
    block: int | None = None,
    key: Array | None = None,
) -> Quantised:
    r"""Hold an array in few bits.

    Each block's scale takes its largest magnitude to the format's largest element:
    :math:`s = \max |x| / e_{\max}`; powers of two are :math:`s = 2^{\lfloor \log_2 \max |x|
    \rfloor - \lfloor \log_2 e_{\max} \rfloor}` (OCP Microscaling Formats 1.0, section 6.3), under
    which what lies above the largest element becomes it. NVFP4's block scales are in units of
    :math:`\max |x| / (448 \cdot 6)` over the whole array.

    Args:
      x: the array.
      form: the format.
      axis: along which a scale is shared.
      block: how many share one; the format's by default, all along the axis where it has none.
      key: round at random, see :func:`stochastic`; to the nearest by default.

    Returns:
      :class:`Quantised`. A block of zeros has zeros and a scale of one; a block with a number that
      is not finite has a scale of NaN, and so have all of its numbers.

    Raises:
      ValueError: where blocks do not divide the axis.
    """
    axis = axis if axis < 0 else axis - x.ndim
    size = x.shape[axis]
    block = block or form.block or size
    if size % block:
        raise ValueError(
            f"blocks of {block} do not divide the {size} numbers along axis {axis} of an array of "
            f"shape {x.shape}: pad it with zeros, or name a block that does."
        )
    x = x.astype(jnp.float32)
    split = _split(x, axis, block)
    top = jnp.max(jnp.abs(split), axis=axis)
    scales, outer = _scales(top, form)
    whole = scales.astype(jnp.float32) * (1.0 if outer is None else outer)
    units = _split(x, axis, block) / jnp.expand_dims(whole, axis)
    units = units.reshape(x.shape)
    elements = cast(units, form) if key is None else stochastic(key, units, form)
    return Quantised(elements, scales, outer, form, axis)


def _split(x: Array, axis: int, block: int) -> Array:
    """Give the blocks along an axis an axis of their own, behind which lie their numbers."""
    place = x.ndim + axis
    shape = (*x.shape[:place], x.shape[place] // block, block, *x.shape[place + 1 :])
    return x.reshape(shape)


def _scales(top: Array, form: Format) -> tuple[Array, Array | None]:
    """Return scales, and the outer one, from blocks' largest magnitudes."""
    fine = jnp.isfinite(top)
    if form.scale == jnp.float8_e8m0fnu:
        _, exponent = jnp.frexp(top)
        _, unit = jnp.frexp(jnp.float32(form.largest))
        scales = jnp.ldexp(jnp.ones_like(top), jnp.clip(exponent - unit, -127, 127))
        outer = None
    elif form.scale == jnp.float32:
        scales, outer = top / form.largest, None
    else:
        most = jnp.max(jnp.where(fine, top, 0))
        limit = float(jnp.finfo(form.scale).max)
        outer = jnp.where(most > 0, most / (limit * form.largest), 1.0)
        scales = jnp.clip(top / form.largest / outer, -limit, limit)
    scales = jnp.where(fine, scales, jnp.nan).astype(form.scale)
    return jnp.where(top == 0, 1, scales).astype(form.scale), outer
