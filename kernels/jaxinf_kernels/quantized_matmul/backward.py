"""The cotangents of a product of quantised matrices, in floats or in few bits again."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.formats import Format, quantise
from jaxinf_kernels.operation import Arrays, Rule
from jaxinf_kernels.quantized_matmul import xla
from jaxinf_kernels.quantized_matmul.factors import Factor, factor, held
from jaxinf_kernels.quantized_matmul.problem import ACTIVATIONS, Operands, Problem


class Products(NamedTuple):
    """How products are done on a platform."""

    forward: Callable[..., Array]
    """(operands, problem) -> the operation's value."""
    sums: Callable[..., Array]
    """(x, w, dtype, how) -> a product with all of its scales, in float32 or wider."""
    back: Callable[..., Array]
    """(g, w, dtype, how) -> the product of cotangents and the transpose of what is held."""


def _forward(given: Operands, spec: Problem) -> Array:
    """Return the operation's value."""
    return xla.multiply(*spec.flat(given), spec=spec)[0]


def _sums(x: Factor, w: Factor, dtype: Any, how: Any) -> Array:
    """Return a product with all of its scales."""
    total = xla.sums(x, w, dtype)
    for scale in (x.whole, w.whole):
        total = total if scale is None else total * scale
    return total


def _back(g: Array, w: Factor, dtype: Any, how: Any) -> Array:
    """Return the product of cotangents and a transpose."""
    g = g if w.whole is None else g * w.whole
    return xla.product(g.astype(dtype), jnp.swapaxes(w.numbers(dtype), 1, 2))


PLAIN = Products(_forward, _sums, _back)
"""In JAX's own operations."""


def pull(*args: Array, spec: Rule, products: Products) -> Arrays:
    """Return the cotangents of the active operands."""
    problem: Any = spec.spec
    operands, _, (g,) = spec.split(args)
    names = problem.names
    active = [name for name, a in zip(names, spec.active, strict=True) if a]
    known = {"x floats", "bias"} if problem.w.of else {"x floats", "w floats", "bias"}
    if not set(active) <= known:
        function, moving = spec.of(xla.multiply, operands)
        return jax.vjp(function, *moving)[1]((g,))
    given = problem.operands(operands)
    exact = jnp.promote_types(problem.slopes(given), jnp.float32)
    g = g.astype(exact)
    if problem.activation is not None:
        before = problem.__class__(**{**vars(problem), "activation": None, "dtype": exact})
        total = products.forward(given, before)
        g = jax.vjp(ACTIVATIONS[problem.activation], total.astype(exact))[1](g)[0]
    rule = _low if problem.gradients else _floats
    dx, dw = rule(problem, given, g, products, active)
    found = {"x floats": dx, "w floats": dw, "bias": partial(jnp.sum, g, axis=1)}
    likes = dict(zip(names, operands, strict=True))
    return tuple(_fit(found[name](), likes[name]) for name in active)


def _fit(cotangent: Array, like: Array) -> Array:
    """Sum over the batch where the operand serves all of it."""
    if like.shape[0] == 1 and cotangent.shape[0] > 1:
        cotangent = jnp.sum(cotangent, axis=0, keepdims=True)
    return cotangent.astype(like.dtype)


def _floats(problem: Problem, given: Operands, g: Array, products: Products, _: Any) -> Any:
    """Cotangents are not quantised; their partners are what the value was made of."""
    dtype = problem.slopes(given)

    def dx() -> Array:
        w = factor(problem.w, given.w, -2)
        back = products.back if problem.w.held else _back
        return back(g, w, dtype, problem.how)

    def dw() -> Array:
        x = factor(problem.x, given.x, -1)
        scaled = g if x.whole is None else g * x.whole
        return xla.product(jnp.swapaxes(x.numbers(dtype), 1, 2), scaled.astype(dtype))

    return dx, dw


def _low(problem: Problem, given: Operands, g: Array, products: Products, active: Any) -> Any:
    """Cotangents and partners are each quantised along what is summed over."""
    assert problem.gradients is not None
    form, partner = problem.gradients
    keys: Any = (None, None)
    if given.key is not None:
        wrap = partial(jax.random.wrap_key_data, impl=problem.key)
        keys = jax.vmap(lambda a: jax.random.split(wrap(a)), out_axes=1)(given.key)

    def dx() -> Array:
        left = _along(g, form, -1, keys[0])
        right = _along(jnp.swapaxes(given.w["floats"], 1, 2), partner, -2)
        return products.sums(left, right, jnp.dtype(jnp.bfloat16), problem.how)

    def dw() -> Array:
        left = _along(jnp.swapaxes(given.x["floats"], 1, 2), partner, -1)
        right = _along(g, form, -2, keys[1])
        return products.sums(left, right, jnp.dtype(jnp.bfloat16), problem.how)

    return dx, dw


def _along(a: Array, form: Format, axis: int, keys: Array | None = None) -> Factor:
    """Quantise each of a batch along an axis, filled up with zeros to whole blocks."""
    pad = [(0, 0)] * a.ndim
    pad[axis] = (0, -a.shape[axis] % (form.block or 1))
    a = jnp.pad(a, pad)
    if keys is None:
        found = jax.vmap(lambda one: quantise(one, form, axis=axis))(a)
    else:
        keys = jnp.broadcast_to(keys, (a.shape[0],))
        found = jax.vmap(lambda one, key: quantise(one, form, axis=axis, key=key))(a, keys)
    return held(found.elements, found.scales, found.outer, form, axis)
