"""Products of quantised matrices in JAX's own operations, differentiable to any order.

What is quantised on the way has the derivative of the identity: values are of the elements'
products, derivatives are of the products of the numbers that they stand for.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.quantized_matmul.factors import Factor, factor, summed
from jaxinf_kernels.quantized_matmul.problem import Problem, Side, finish
from jaxinf_kernels.quantized_matmul.sparse import spread
from jaxinf_kernels.tiles import precise


def multiply(*arrays: Array, spec: Problem) -> tuple[Array]:
    """Return the product [B, N, M]."""
    return (every(_multiply(spec, *arrays), arrays),)


def every(out: Array, arrays: Sequence[Array]) -> Array:
    """Return a result for all of the batch, also where only the key, say, has one."""
    return jnp.broadcast_to(out, (max(a.shape[0] for a in arrays), *out.shape[1:]))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _multiply(spec: Problem, *arrays: Array) -> Array:
    given = spec.operands(arrays)
    x, w = factor(spec.x, given.x, -1), factor(spec.w, given.w, -2)
    bias = None if given.bias is None else given.bias[:, None]
    total = sums(x, w, spec.pairs(given))
    return finish(total, (x.whole, w.whole), bias, spec.activation).astype(spec.dtype)


@_multiply.defjvp
def _(spec: Problem, primals: Any, tangents: Any) -> tuple[Array, Array]:
    # elements and scales of eight bits and fewer are constants: E8M0 has not even a zero
    moves = [a.dtype.itemsize > 1 and jnp.issubdtype(a.dtype, jnp.floating) for a in primals]

    def straight(*moved: Array) -> Array:
        rest = iter(moved)
        return _straight(
            spec, *[next(rest) if m else a for m, a in zip(moves, primals, strict=True)]
        )

    active = [[a for m, a in zip(moves, each, strict=True) if m] for each in (primals, tangents)]
    return _multiply(spec, *primals), jax.jvp(straight, active[0], active[1])[1]


def sums(x: Factor, w: Factor, dtype: Any) -> Array:
    """Return the product without the scales that all of K shares.

    ``dtype`` is what elements are widened to where they are scaled first.
    """
    blocks = summed(x, w)
    if blocks is None:
        return product(x.numbers(dtype), w.numbers(dtype))
    ex, ew = x.dense, w.dense
    assert x.form is not None
    small = jnp.int8 if x.form.whole else jnp.bfloat16
    ex, ew = ex.astype(small), ew.astype(small)
    if blocks == 1:
        return product(ex, ew).astype(jnp.float32)
    total: Any = 0.0
    size = x.depth // blocks
    for g in range(blocks):
        part = slice(g * size, (g + 1) * size)
        one = product(ex[..., part], ew[..., part, :]).astype(jnp.float32)
        total += scaled(one, x, w, g, blocks)
    return total


def scaled(one: Array, x: Factor, w: Factor, g: int, blocks: int) -> Array:
    """Scale the sums of block g."""
    if x.inner is not None:
        at = g * x.blocks // blocks
        one = one * x.inner[..., at : at + 1].astype(jnp.float32)
    if w.inner is not None:
        at = g * w.blocks // blocks
        one = one * w.inner[..., at : at + 1, :].astype(jnp.float32)
    return one


def product(a: Array, b: Array) -> Array:
    """Multiply batches of matrices, of which one may be shared, and sum without rounding."""
    exact = jnp.int32 if a.dtype == jnp.int8 else jnp.promote_types(a.dtype, jnp.float32)
    return jnp.matmul(a, b, precision=precise(a.dtype), preferred_element_type=exact)


def _straight(spec: Problem, *arrays: Array) -> Array:
    """The product of numbers; what rounds them passes derivatives on."""
    given = spec.operands(arrays)
    dtype = spec.slopes(given)
    x, w = (_numbers(s, a, i, dtype) for s, a, i in ((spec.x, given.x, -1), (spec.w, given.w, -2)))
    bias = None if given.bias is None else given.bias[:, None]
    return finish(product(x, w), (), bias, spec.activation).astype(spec.dtype)


def _numbers(side: Side, arrays: dict[str, Array], axis: int, dtype: Any) -> Array:
    """All of a side's numbers as a function of its arrays."""
    if side.form is None:
        floats = arrays["floats"]
        return (spread(floats, arrays["places"], side.of) if side.of else floats).astype(dtype)
    if side.held:
        found = factor(side, arrays, axis)
        exact = jnp.promote_types(dtype, jnp.float32)
        assert found.whole is not None
        return (found.numbers(exact) * found.whole.astype(exact)).astype(dtype)
    floats = arrays["floats"]
    found = factor(side, {"floats": jax.lax.stop_gradient(floats)}, axis)
    assert found.whole is not None
    rounded = found.numbers(jnp.float32) * found.whole
    zero = (floats - jax.lax.stop_gradient(floats)).astype(jnp.float32)
    return (rounded + zero).astype(dtype)
