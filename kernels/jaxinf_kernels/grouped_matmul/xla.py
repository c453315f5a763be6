"""The grouped product in JAX's own operations: visit by visit, no row for a group not its own.

``jax.lax.ragged_dot`` multiplies every row by every group's matrix where a platform has no form of
it; a visit multiplies a block of rows by one.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.compat import vary_alike
from jaxinf_kernels.formats import Quantised, quantise
from jaxinf_kernels.grouped_matmul.problem import Operands, Problem
from jaxinf_kernels.grouped_matmul.schedule import THERE, Visits, visits
from jaxinf_kernels.operation import Rule
from jaxinf_kernels.tiles import precise

ROWS = 128
"""In a block."""
EXACT = 1024
"""Products of two INT8 of which the sum is exact in float32: 1024 · 127² < 2²⁴."""


def multiply(*arrays: Array, spec: Problem) -> tuple[Array]:
    """Return products [B, N, M]."""
    x, w, sizes = spec.operands(arrays)
    if isinstance(w, Quantised):
        return (_held(spec, x, w.elements, w.scales, sizes),)
    if spec.form is None:
        return (product(x, w, sizes, dtype=x.dtype),)
    return (_rounded(spec, x, w, sizes),)


def pull(*args: Array, spec: Rule) -> tuple[Array, ...]:
    """Return the cotangents of what is differentiated."""
    return pulled(product, outer, *args, spec=spec)


def pulled(multiply: Any, outer: Any, *args: Array, spec: Rule) -> tuple[Array, ...]:
    """The reverse rule by two products, which are as :func:`product` and :func:`outer` below."""
    problem: Any = spec.spec
    arrays, _, (dy,) = spec.split(args)
    x, w, sizes = straight(problem, problem.operands(arrays))
    wants_x, wants_w = spec.active[0], any(spec.active[1:])
    exact = jnp.promote_types(x.dtype, jnp.float32)
    found = []
    if wants_x:
        dtype = x.dtype if x.shape[0] == dy.shape[0] else exact
        found.append(multiply(dy, w, sizes, transposed=True, dtype=dtype))
    if wants_w:
        plain = not problem.held and w.shape[0] == dy.shape[0]
        dw = outer(x, dy, sizes, dtype=x.dtype if plain else exact)
        if problem.held:
            dw = jnp.sum(dw * arrays[1].astype(dw.dtype), axis=-2, keepdims=True)
        found.append(dw)
    like = [a for a, active in zip(arrays, spec.active, strict=True) if active]
    return tuple(_sum_to(a, b).astype(b.dtype) for a, b in zip(found, like, strict=True))


def _sum_to(a: Array, like: Array) -> Array:
    """Add up the batch of what serves all of it."""
    return a if a.shape[0] == like.shape[0] else jnp.sum(a, axis=0, keepdims=True)


def straight(spec: Problem, given: Operands) -> Operands:
    """Return x and w as they are multiplied, in x's dtype; derivatives pass rounding unchanged."""
    if spec.form is None:
        return given
    x, w, sizes = given
    dtype = x.dtype
    w = w.dequantise(dtype) if isinstance(w, Quantised) else _through(spec, w, -2)
    return Operands(_through(spec, x, -1), w, sizes)


@partial(jax.custom_jvp, nondiff_argnums=(0, 2))
def _through(spec: Problem, x: Array, axis: int) -> Array:
    """Round to a format and back; its derivative is one."""
    assert spec.form is not None
    return quantise(x, spec.form, axis=axis).dequantise(x.dtype)


@_through.defjvp
def _through_jvp(spec: Problem, axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _through(spec, primals[0], axis), tangents[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _held(spec: Problem, x: Array, elements: Array, scales: Array, sizes: Array) -> Array:
    """Multiply by what is held in a format."""
    assert spec.form is not None
    return _whole(x, Quantised(elements, scales, None, spec.form, -2), sizes)


@_held.defjvp
def _held_jvp(spec: Problem, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, w, sizes = straight(spec, spec.operands(primals))
    dx, _, dscales, _ = tangents
    dw = (primals[1].astype(jnp.float32) * dscales).astype(x.dtype)
    return _held(spec, *primals), _push(x, w, sizes, dx, dw)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _rounded(spec: Problem, x: Array, w: Array, sizes: Array) -> Array:
    """Multiply in a format."""
    assert spec.form is not None
    return _whole(x, quantise(w, spec.form, axis=-2), sizes)


@_rounded.defjvp
def _rounded_jvp(spec: Problem, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, w, sizes = straight(spec, Operands(*primals))
    dx, dw, _ = tangents
    return _rounded(spec, *primals), _push(x, w, sizes, dx, dw)


def _push(x: Any, w: Any, sizes: Array, dx: Array, dw: Array) -> Array:
    return product(dx, w, sizes, dtype=x.dtype) + product(x, dw, sizes, dtype=x.dtype)


def _whole(x: Array, w: Quantised, sizes: Array) -> Array:
    """Sum whole numbers exactly, then scale by row and by column."""
    q = quantise(x, w.form)

    def dot(a: Array, b: Array) -> Array:
        total = jnp.zeros((a.shape[0], b.shape[1]), jnp.int32)
        for i in range(0, a.shape[1], EXACT):
            parts = (v.astype(jnp.float32) for v in (a[:, i : i + EXACT], b[i : i + EXACT]))
            total += jnp.dot(*parts, precision=jax.lax.Precision.DEFAULT).astype(jnp.int32)
        return total

    def scaled(a: Array, s: Array, b: Array, t: Array) -> Array:
        return dot(a, b).astype(jnp.float32) * s * t

    out = _visit_blocks((q.elements, q.scales), (w.elements, w.scales), sizes, scaled)
    return out.astype(x.dtype)


def product(x: Array, w: Array, sizes: Array, *, dtype: Any, transposed: bool = False) -> Array:
    """Return rows [B, N, K] times their groups' [B, G, K, M], or [B, G, M, K] transposed."""
    contract = (((1,), (1 if transposed else 0,)), ((), ()))
    dot = partial(
        jax.lax.dot_general,
        dimension_numbers=contract,
        precision=precise(x.dtype),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return _visit_blocks((x,), (w,), sizes, dot).astype(dtype)


def outer(x: Array, dy: Array, sizes: Array, *, dtype: Any) -> Array:
    """Return the sum of x_i dy_i over the rows of each group, [B, G, K, M]."""
    exact = jnp.promote_types(x.dtype, jnp.float32)
    contract = (((0,), (0,)), ((), ()))

    def one(x: Array, dy: Array, sizes: Array) -> Array:
        n = x.shape[0]
        block = max(1, min(ROWS, n))
        x, dy = (_fill(a, block) for a in (x, dy))

        def visit(out: Array, at: Visits) -> tuple[Array, None]:
            def add(out: Array) -> Array:
                a, b = (_mine(_block(v, at.blocks, block), at) for v in (x, dy))
                part = jax.lax.dot_general(
                    a, b, contract, precision=precise(x.dtype), preferred_element_type=exact
                )
                return out.at[at.groups].add(part)

            return jax.lax.cond((at.flags & THERE) != 0, add, lambda out: out, out), None

        start = jnp.zeros((sizes.shape[0], x.shape[1], dy.shape[1]), exact)
        start = vary_alike([start, x, dy, sizes])[0]
        return jax.lax.scan(visit, start, visits(sizes, n, block, by_group=True))[0]

    return _each(one, x, dy, sizes).astype(dtype)


def _visit_blocks(rows: Any, matrices: Any, sizes: Array, dot: Any) -> Array:
    """Fill the blocks of a result, where ``dot`` multiplies a block of rows by a group's arrays."""
    split = len(rows)

    def one(*arrays: Array) -> Array:
        *given, sizes = arrays
        n = given[0].shape[0]
        block = max(1, min(ROWS, n))
        filled = [_fill(a, block) for a in given[:split]]
        shape = jax.eval_shape(dot, *(a[:block] for a in filled), *(a[0] for a in given[split:]))

        def visit(out: Array, at: Visits) -> tuple[Array, None]:
            def store(out: Array) -> Array:
                own = [a[at.groups] for a in given[split:]]
                part = dot(*(_block(a, at.blocks, block) for a in filled), *own)
                mine = _members(at, block)
                part = jnp.where(mine, part, _block(out, at.blocks, block))
                return jax.lax.dynamic_update_slice_in_dim(out, part, at.blocks * block, 0)

            return jax.lax.cond((at.flags & THERE) != 0, store, lambda out: out, out), None

        start = jnp.zeros((filled[0].shape[0], shape.shape[1]), shape.dtype)
        start = vary_alike([start, *arrays])[0]
        return jax.lax.scan(visit, start, visits(sizes, n, block, by_group=False))[0][:n]

    return _each(one, *rows, *matrices, sizes)


def _each(one: Any, *arrays: Array) -> Array:
    """Go over the batch; what has an axis of one serves all of it."""
    batch = max(a.shape[0] for a in arrays)
    if batch == 1:
        return one(*(a[0] for a in arrays))[None]
    own = [a if a.shape[0] > 1 else None for a in arrays]

    def step(_: None, mine: Any) -> tuple[None, Array]:
        both = zip(arrays, mine, strict=True)
        return None, one(*(a[0] if m is None else m for a, m in both))

    return jax.lax.scan(step, None, own)[1]


def _fill(a: Array, block: int) -> Array:
    """Fill rows up to whole blocks, of which there is one at least."""
    short = max(block - a.shape[0], -a.shape[0] % block)
    return jnp.pad(a, ((0, short), (0, 0))) if short else a


def _block(a: Array, number: Array, block: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(a, number * block, block)


def _members(at: Visits, block: int) -> Array:
    rows = jnp.arange(block)[:, None]
    return (rows >= at.low) & (rows < at.high)


def _mine(a: Array, at: Visits) -> Array:
    return jnp.where(_members(at, a.shape[0]), a, 0)
