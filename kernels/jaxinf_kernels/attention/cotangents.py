"""What the kernels of every platform share: when they are worth it, and cotangents of sums."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.attention.problem import Operands, Problem
from jaxinf_kernels.operation import Rule

SMALL = 128 * 128
"""Logits of a head below which a kernel has nothing to win."""


def idle(spec: Any, arrays: Any) -> str | None:
    """Return why the plain form is as fast; None where it is not."""
    q, k = arrays[:2]
    if q.shape[2] * k.shape[2] < SMALL:
        return f"a head has fewer than {SMALL} logits"
    return None


def problem_of(spec: Any) -> Problem:
    """Return the problem of a value or of a reverse rule."""
    problem: Any = spec.spec if isinstance(spec, Rule) else spec
    return problem


def refusal_of_slopes(spec: Any) -> str | None:
    """Return that a reverse rule is asked for slopes' cotangents, which no kernel has."""
    if isinstance(spec, Rule) and problem_of(spec).operands(spec.active).slopes:
        return "the kernel has no derivative of slopes: stop_gradient them where they are constants"
    return None


def summed(value: Any, like: Array) -> Array:
    """Return a cotangent of an array's shape: what served many is summed over them."""
    axes = tuple(x for x in range(2) if like.shape[x] == 1 and value.shape[x] > 1)
    return jnp.sum(value, axis=axes, keepdims=True).astype(like.dtype)


def delta_of(outputs: tuple[Array, Array], cotangents: tuple[Array, Array]) -> Array:
    """Return what is taken from the weights' cotangents, [B, H, N]: out . d_out - d_lse."""
    (out, _), (d_out, d_lse) = outputs, cotangents
    return jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1) - d_lse


def of_sinks(given: Operands, lse: Array, delta: Array) -> Array:
    """Return the sinks' cotangents: their share of the softmax, which has no value."""
    assert given.sinks is not None
    share = jnp.exp(given.sinks[:, :, None] - lse)
    return summed(-jnp.sum(share * delta, axis=2), given.sinks)
