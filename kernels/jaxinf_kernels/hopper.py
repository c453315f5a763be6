"""What kernels for Hopper have in common: products of a warpgroup, how their operands lie.

Interpret mode has no rule for a product with an operand, or an accumulator that goes on, in
registers. So a kernel multiplies by the functions here alone: with ``interpret`` false these are
``plgpu.wgmma``, with ``interpret`` true JAX's own product of the same operands, and all else of the
kernel is the same. Operands of products are blocks of shared memory made by :func:`block`, views of
them (``.at[slot]``, ``.transpose((1, 0))``), or, on the left, arrays in registers.

Two ways to add up, in which ``interpret=`` is left out here. As values, which a loop carries::

    s = product(q, k.transpose((1, 0)))
    (o,) = added((o, p, v))

As a reference to an accumulator, which is not waited for until its value is asked for::

    def sum_up(acc):
        def step(i, _):
            multiply(acc, a.at[slot(i)], b.at[slot(i)])
            wait(1)  # the product before is done: its operands may be overwritten
        lax.fori_loop(0, steps, step, None)
        return value(acc)

    total = accumulated((64, 128), sum_up)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

WARPGROUP_ROWS = 64
"""Rows of the left operand that a warpgroup multiplies in one instruction."""
MEMORY = 232448
"""Bytes of shared memory that a block can have on an H100 and an H200."""
COMPUTING, BRINGING = 240, 24
"""Registers of a thread of two computing warpgroups, and of one that moves memory."""
PARAMS = plgpu.CompilerParams(approx_math=True)

MATRIX = plgpu.Layout.WGMMA
"""How accumulators, and what is computed of them, lie in registers."""
DOWN = plgpu.Layout.WGMMA.reduce(1)
"""A number for each row of a matrix."""
ACROSS = plgpu.Layout.WGMMA.reduce(0)
"""A number for each column of a matrix."""


def tiled(width: int, dtype: Any, most: int = 128) -> tuple[Any, Any]:
    """Return the tiling and the swizzle of a block whose last axis has so many numbers.

    Args:
      width: of the last axis.
      dtype: of the numbers.
      most: bytes of the swizzle at most. Sums over the rows of a right operand that is not
        transposed are over a multiple of as many bytes.

    Returns:
      The transforms.
    """
    bits = jax.dtypes.itemsize_bits(dtype)
    widths = (b for b in (128, 64, 32) if b <= most and width * bits % (b * 8) == 0)
    swizzle = next(widths, None)
    if swizzle is None:
        raise ValueError(f"a row of a block has a multiple of 32 bytes, got {width} of {dtype}.")
    return plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle)


def block(shape: tuple[int, ...], dtype: Any, most: int = 128) -> Any:
    """Return a block of shared memory for operands: the last two axes are rows and columns.

    Operands of a product have one swizzle; ``most`` as in :func:`tiled`.
    """
    return plgpu.SMEM(shape, dtype, transforms=tiled(shape[-1], dtype, most))


def filled(shape: tuple[int, ...], number: float, layout: Any, dtype: Any = jnp.float32) -> Any:
    """Return an array of one number, in a layout."""
    return plgpu.layout_cast(jnp.full(shape, number, dtype), layout)


def rows_of(column: Any, shape: tuple[int, ...]) -> Any:
    """Spread a number for each row (in ``DOWN``) over a matrix."""
    return jax.lax.broadcast_in_dim(column, shape, (0,))


def columns_of(row: Any, shape: tuple[int, ...]) -> Any:
    """Spread a number for each column (in ``ACROSS``) over a matrix."""
    return jax.lax.broadcast_in_dim(row, shape, (1,))


def numbered(shape: tuple[int, int], axis: int, first: Any = 0, layout: Any = MATRIX) -> Any:
    """Return the places along an axis of a matrix, counted from ``first``."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout) + first


def slot(step: Any, count: int) -> Any:
    """Return where in a ring of ``count`` blocks a step's lies."""
    return jax.lax.rem(step, jnp.asarray(count, step.dtype))


def product(
    a: Any, b: Any, *, interpret: bool, dtype: Any = jnp.float32,
    during: Callable[[], None] | None = None,
) -> Any:  # fmt: skip
    """Return a @ b.

    Args:
      a: rows by what is summed over; a block or an array in registers.
      b: what is summed over by columns; a block.
      interpret: whether JAX's own product is taken.
      dtype: of the sums; int32 for whole numbers.
      during: called while the product is under way: to arrive at barriers, or to wait for them.

    Returns:
      The product, in registers.
    """
    if interpret:
        found = _plain(a, b, dtype)
        if during is not None:
            during()
        return found

    def run(acc: Any) -> Any:
        plgpu.wgmma(acc, a, b)
        if during is not None:
            during()
        return acc[...]

    return pl.run_scoped(run, plgpu.ACC((a.shape[0], b.shape[1]), dtype))


def products(*pairs: tuple[Any, Any], interpret: bool, dtype: Any = jnp.float32) -> Any:
    """Return a @ b for each pair, of which all are under way at once; as :func:`product`."""
    if interpret:
        return tuple(_plain(a, b, dtype) for a, b in pairs)

    def run(*accumulators: Any) -> Any:
        for acc, (a, b) in zip(accumulators, pairs, strict=True):
            plgpu.wgmma(acc, a, b)
        return tuple(acc[...] for acc in accumulators)

    return pl.run_scoped(run, *(plgpu.ACC((a.shape[0], b.shape[1]), dtype) for a, b in pairs))


def added(*terms: tuple[Any, Any, Any], interpret: bool, during: Any = None) -> tuple[Any, ...]:
    """Return sum + a @ b for each term, of which all are under way at once.

    Args:
      *terms: (sum, a, b), the sum an array in registers.
      interpret: whether JAX's own product is taken.
      during: as in :func:`product`.

    Returns:
      The sums.
    """
    if interpret:
        found = tuple(total + _plain(a, b, total.dtype) for total, a, b in terms)
        if during is not None:
            during()
        return found

    def run(accumulators: Any) -> None:
        for acc, (_, a, b) in zip(accumulators, terms, strict=True):
            plgpu.wgmma(acc, a, b)
        if during is not None:
            during()

    return pl.run_state(run)(tuple(plgpu.ACC.init(total) for total, _, _ in terms))


def accumulated(
    shape: tuple[int, int], function: Callable[..., Any], *, interpret: bool,
    dtype: Any = jnp.float32, held: Any = None,
) -> Any:  # fmt: skip
    """Call a function with an accumulator that is 0, and return what it returns.

    Args:
      shape: of the accumulator.
      function: of the accumulator.
      interpret: whether products are JAX's own.
      dtype: of the sums; int32 for whole numbers.
      held: a warpgroup's part of a scratch made by :func:`holding`, which interprets the
        accumulator. Without it registers are interpreted, which race detection takes for a race
        where a kernel has more than one block of threads.

    Returns:
      What the function returns.
    """
    if not interpret:
        return pl.run_scoped(function, plgpu.ACC(shape, dtype))

    def run(acc: Any) -> Any:
        acc[...] = jnp.zeros(shape, dtype)
        return function(acc)

    return run(held) if held is not None else pl.run_scoped(run, plgpu.REGS(shape, dtype))


def holding(shape: tuple[int, ...], *, interpret: bool, dtype: Any = jnp.float32) -> Any:
    """Return the type of a kernel's scratch that interprets accumulators; None when compiled."""
    return plgpu.SMEM(shape, dtype) if interpret else None


def multiply(acc: Any, a: Any, b: Any, *, interpret: bool) -> None:
    """Add a @ b to an accumulator; operands must stay until it is waited for."""
    if interpret:
        acc[...] += _plain(a, b, acc.dtype)
    else:
        plgpu.wgmma(acc, a, b)


def wait(pending: int, *, interpret: bool) -> None:
    """Wait until so many products, the latest, are under way at most."""
    if not interpret:
        plgpu.wgmma_wait(pending)


def value(acc: Any) -> Any:
    """Wait for all products and return an accumulator's value."""
    return acc[...]


def _plain(a: Any, b: Any, dtype: Any) -> Any:
    """Return a @ b by JAX, its terms and sums in the accumulator's dtype."""
    left, right = a[...].astype(dtype), b[...].astype(dtype)
    plgpu.commit_smem()  # blocks were read as an instruction of the tensor cores reads them
    return jax.lax.dot(left, right, precision=jax.lax.Precision.HIGHEST)
