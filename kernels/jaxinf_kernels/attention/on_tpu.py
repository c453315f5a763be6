"""Attention as programs for TPUs hold it: which blocks, what is left to plain JAX, what divides."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.attention import tpu, tpu_backward
from jaxinf_kernels.attention.blocks import blocks_for
from jaxinf_kernels.attention.cotangents import (
    delta_of,
    idle,
    of_sinks,
    problem_of,
    refusal_of_slopes,
    summed,
)
from jaxinf_kernels.attention.problem import Problem
from jaxinf_kernels.divided import Letters, letters_of
from jaxinf_kernels.operation import Kernel, Rule


def refusal(spec: Any, arrays: Any) -> str | None:
    """Return why the kernels do not take a problem, or its reverse rule; None where they do."""
    q, k = arrays[:2]
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"the kernel takes float32 and bfloat16, not {q.dtype}: cast with astype"
    if not q.shape[2] or not k.shape[2]:
        return "there are no queries or no keys"
    return refusal_of_slopes(spec)


def attend(*arrays: Array, spec: Problem) -> tuple[Array, Array]:
    """See :func:`tpu.attend`."""
    q, k, v, *_ = arrays
    return tpu.attend(*arrays, spec=spec, blocks=blocks_for(spec, q, k, v))


def pull(*args: Array, spec: Rule) -> tuple[Array, ...]:
    """Return the cotangents of the active operands."""
    problem = problem_of(spec)
    arrays, outputs, cotangents = spec.split(args)
    given = problem.operands(arrays)
    active = problem.operands(spec.active)
    d_q, d_k, d_v, d_s = tpu_backward.pull(
        problem,
        given,
        outputs,
        cotangents,
        bool(active.bias),
        blocks_for(problem, given.q, given.k, given.v, reverse=True),
    )
    found: list[Array] = []
    for on, like, value in zip(active[:3], given[:3], (d_q, d_k, d_v), strict=True):
        if on:
            found.append(summed(value, like))
    if given.bias is not None and active.bias:
        found.append(summed(d_s, given.bias))
    if given.sinks is not None and active.sinks:
        found.append(of_sinks(given, outputs[1], delta_of(outputs, cotangents)))
    return tuple(found)


def letters(spec: Problem, arrays: Any, results: Any) -> Letters:
    """Return which axes can be divided: the batch, and heads where each has keys of its own."""
    return _letters(spec, arrays), [
        letters_of(a, results[0].shape[0], _own(spec, arrays)) for a in results
    ]


def pull_letters(spec: Rule, args: Any, results: Any) -> Letters:
    """See :func:`letters`."""
    problem: Any = spec.spec
    arrays, outputs, cotangents = spec.split(args)
    given = _letters(problem, arrays)
    own, batch = _own(problem, arrays), outputs[0].shape[0]
    more = [letters_of(a, batch, own) for a in (*outputs, *cotangents)]
    # the cotangent of what serves the whole batch is a sum over it, which no device has
    found = [word for word, active in zip(given, spec.active, strict=True) if active]
    return [*given, *more], found


def _own(spec: Problem, arrays: Any) -> bool:
    given = spec.operands(arrays)
    return given.q.shape[1] == given.k.shape[1]


def _letters(spec: Problem, arrays: Any) -> list[str]:
    """Return the operands' letters."""
    given = spec.operands(arrays)
    batch, heads, own = max(a.shape[0] for a in arrays), given.q.shape[1], _own(spec, arrays)
    headed = len(arrays) - len(given.leaves)
    return [
        letters_of(a, batch, own and x < headed and a.shape[1] == heads)
        for x, a in enumerate(arrays)
    ]


VALUE = Kernel(attend, refusal, idle)
REVERSE = Kernel(pull, refusal, idle)
