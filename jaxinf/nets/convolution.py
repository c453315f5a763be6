"""Convolutions that XLA on CPU runs fast inside loops too, as shifts around a product."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def shifted_convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "a b c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "n p q d"]:
    """The convolution as one product with a matrix, accumulated in float32 at least.

    The rows under the kernel stand side by side as channels, the matrix gives an output for each of
    the kernel's columns, and these are added where they belong: a third of the copies that whole
    patches take. The barriers keep XLA from computing what comes before and after, forward and in
    reverse, once for each shift.
    """
    a, b, c, d = kernel.shape
    down, across = strides
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))
    height, width = x.shape[1] - a + 1, x.shape[2] - b + 1
    rows = jnp.concatenate([x[:, i : i + height : down] for i in range(a)], axis=-1)
    matrix = kernel.transpose(0, 2, 1, 3).reshape(a * c, b * d)
    exact = jnp.promote_types(x.dtype, jnp.float32)
    columns = jnp.matmul(lax.optimization_barrier(rows), matrix, preferred_element_type=exact)
    columns = lax.optimization_barrier(columns)
    shifts = [columns[:, :, j : j + width : across, j * d : (j + 1) * d] for j in range(b)]
    return lax.optimization_barrier(sum(shifts[1:], shifts[0]).astype(x.dtype))


def convolution(
    lhs: Float[Array, "n h w c"],
    rhs: Float[Array, "a b c d"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Float[Array, "n p q d"]:
    """Convolve images with a kernel, by the algorithm that suits the platform.

    Equals ``jax.lax.conv_general_dilated`` with channels last up to rounding and takes its
    arguments, so that ``flax.linen.Conv(conv_general_dilated=convolution)`` uses it. On CPU it
    is :func:`shifted_convolution`, because XLA's own gradient of a convolution is tens of times
    slower inside ``scan`` or ``while``; elsewhere, as the program is lowered, the native one.

    Args:
      lhs: images, channels last.
      rhs: the kernel: height, width, input and output channels.
      window_strides: two strides.
      padding: "SAME", "VALID", or the two pairs of (before, after).
      lhs_dilation: must be 1.
      rhs_dilation: must be 1.
      dimension_numbers: ``None`` or what Flax passes for channels last.
      feature_group_count: must be 1.
      precision: of the native convolution, as ``lax`` takes it.

    Returns:
      The convolved images in ``lhs``'s dtype.

    Raises:
      ValueError: for dilations, groups or layouts that it does not have.
    """
    layout = lax.conv_dimension_numbers(
        lhs.shape, rhs.shape, dimension_numbers or ("NHWC", "HWIO", "NHWC")
    )
    last = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    dilations = *(lhs_dilation or ()), *(rhs_dilation or ())
    if layout != last or feature_group_count != 1 or any(d != 1 for d in dilations):
        raise ValueError(
            f"convolution has channels last, no dilation and one group, got layout {layout}, "
            f"dilations {lhs_dilation} and {rhs_dilation}, {feature_group_count} groups. "
            "Use jax.lax.conv_general_dilated for those."
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    strides = tuple(window_strides)
    pads = tuple((int(before), int(after)) for before, after in padding)

    return _convolved(lhs, rhs, strides, pads, precision)


@partial(jax.jit, static_argnums=(2, 3, 4))  # traced once for all layers of one shape
def _convolved(x: jax.Array, kernel: jax.Array, strides: Any, pads: Any, precision: Any) -> Any:
    """The convolution with channels last, by platform."""

    def native(x: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=layout, precision=precision
        )

    def unrolled(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return shifted_convolution(x, kernel, strides, pads)

    return lax.platform_dependent(x, kernel, cpu=unrolled, default=native)
