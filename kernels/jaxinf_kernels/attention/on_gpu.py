"""Attention as programs for GPUs hold it: which blocks, and what is left to plain JAX."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.attention import (
    gpu,
    gpu_backward,
    gpu_blackwell,
    gpu_blackwell_backward,
)
from jaxinf_kernels.attention.cotangents import (
    idle,
    of_sinks,
    problem_of,
    refusal_of_slopes,
    summed,
)
from jaxinf_kernels.attention.gpu_blocks import Blocks, refusal_of_sizes
from jaxinf_kernels.attention.problem import Problem
from jaxinf_kernels.operation import Kernel, Rule


def refusal(spec: Any, arrays: Any) -> str | None:
    """Return why the kernels do not take a problem, or its reverse rule; None where they do."""
    problem, q = problem_of(spec), arrays[0]
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"the kernel takes bfloat16 and float16, not {q.dtype}: cast with astype"
    if isinstance(spec, Rule) and problem.operands(spec.active).bias:
        return "the kernel has no derivative of the bias: stop_gradient it where it is constant"
    return refusal_of_sizes(*arrays[:3]) or refusal_of_slopes(spec)


def attend(*arrays: Array, spec: Problem, interpret: Any = False) -> tuple[Array, Array]:
    """See :func:`gpu.attend` and :func:`gpu_blackwell.attend`."""
    if spec.how.gpu.blackwell:
        return gpu_blackwell.attend(*arrays, spec=spec, interpret=interpret)
    return gpu.attend(*arrays, spec=spec, blocks=_blocks(spec), interpret=interpret)


def pull(*args: Array, spec: Rule, interpret: Any = False) -> tuple[Array, ...]:
    """Return the cotangents of the active operands."""
    problem = problem_of(spec)
    arrays, outputs, cotangents = spec.split(args)
    given = problem.operands(arrays)
    active = problem.operands(spec.active)
    if problem.how.gpu.blackwell:
        pulled = partial(gpu_blackwell_backward.pull, interpret=interpret)
    else:
        pulled = partial(gpu_backward.pull, blocks=_blocks(problem), interpret=interpret)
    *found, delta = pulled(problem, given, outputs, cotangents)
    back = [
        summed(value, like)
        for on, like, value in zip(active[:3], given[:3], found, strict=True)
        if on
    ]
    if given.sinks is not None and active.sinks:
        back.append(of_sinks(given, outputs[1], delta))
    return tuple(back)


def _blocks(spec: Problem) -> Blocks:
    return spec.how.blocks if isinstance(spec.how.blocks, Blocks) else Blocks()


VALUE = Kernel(attend, refusal, idle)
REVERSE = Kernel(pull, refusal, idle)
