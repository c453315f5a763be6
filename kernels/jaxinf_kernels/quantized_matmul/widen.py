"""Inside a kernel: elements of few bits as wider ones, with the scales of their blocks."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.formats import Format
from jaxinf_kernels.quantized_matmul.sparse import step
from jaxinf_kernels.tiles import precise


def code(elements: Array, native: bool) -> Array:
    """Return elements as a kernel can load them: those of E2M1 by their bits, unless ``native``."""
    if elements.dtype == jnp.float4_e2m1fn and not native:
        return jax.lax.bitcast_convert_type(elements, jnp.int4)
    return elements


def widen(elements: Array, form: Format | None, dtype: Any) -> Array:
    """Return what elements, as ``code`` gives them, are."""
    if form is None or form.dtype == elements.dtype:
        return elements.astype(dtype)
    bits = elements.astype(jnp.int32)
    # 0.5, 0.75, 1, 1.5, 2, 3, 4, 6 for 0, 0.5, 1, 1.5, 2, 3, 4, 6
    normal = jax.lax.bitcast_convert_type(((bits & 7) << 22) + (126 << 23), jnp.float32)
    size = jnp.minimum(normal, normal + normal - 1)
    sign = bits & jnp.int32(-(2**31))
    signed = jax.lax.bitcast_convert_type(size, jnp.int32) | sign
    return jax.lax.bitcast_convert_type(signed, jnp.float32).astype(dtype)


def rows_scaled(elements: Array, scales: Array) -> Array:
    """Multiply each of a number of blocks of rows by its row of scales, in float32."""
    (blocks, columns), rows = scales.shape, elements.shape[0]
    split = elements.reshape(blocks, rows // blocks, columns)
    return (split * scales.astype(jnp.float32)[:, None]).reshape(rows, columns)


def columns_scaled(elements: Array, scales: Array, of: int) -> Array:
    """Multiply blocks of columns by their columns of scales, in float32.

    A product with zeros and ones spreads the scales; columns lie in ``of`` planes, see ``folded``.
    """
    count, columns = scales.shape[1], elements.shape[1]
    size, planes = columns // count, max(1, of)
    spread = []
    for plane in range(planes):
        shape = count, columns // planes
        column = jax.lax.broadcasted_iota(jnp.int32, shape, 1) * planes + plane
        first = jax.lax.broadcasted_iota(jnp.int32, shape, 0) * size
        spread.append(jnp.where((column >= first) & (column < first + size), 1.0, 0.0))
    ones = spread[0] if planes == 1 else jnp.concatenate(spread, axis=1)
    wide = jax.lax.dot_general(
        scales, ones.astype(scales.dtype), (((1,), (0,)), ((), ())),
        precision=precise(scales.dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip
    return elements * wide


def filled(values: list[Array], places: Array, of: int) -> Array:
    """Return sparse rows with their zeros, plane after plane: in the order of ``folded``."""
    bits, found = step(of), places.astype(jnp.int32)
    at = [(found >> (bits * t)) & (2**bits - 1) for t in range(len(values))]
    planes = []
    for plane in range(of):
        total = jnp.zeros_like(values[0])
        for value, place in zip(values, at, strict=True):
            total = jnp.where(place == plane, value, total)
        planes.append(total)
    return jnp.concatenate(planes, axis=0)


def folded(a: Array, depth: int, of: int) -> Array:
    """Return [..., K] with the columns of each block of ``depth`` in ``of`` planes.

    The first plane has the first of each group of sparse rows, the next one the second.
    """
    if not of:
        return a
    split = a.reshape(*a.shape[:-1], a.shape[-1] // depth, depth // of, of)
    return jnp.swapaxes(split, -1, -2).reshape(a.shape)


def unfolded(a: Array, depth: int, of: int) -> Array:
    """Undo ``folded``."""
    if not of:
        return a
    split = a.reshape(*a.shape[:-1], a.shape[-1] // depth, of, depth // of)
    return jnp.swapaxes(split, -1, -2).reshape(a.shape)
