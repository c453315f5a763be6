"""Attention as programs for GPUs hold it: which blocks, and what is left to plain JAX."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.attention import gpu, gpu_backward
from jaxinf_kernels.attention.gpu_blocks import Blocks
from jaxinf_kernels.attention.on_tpu import summed
from jaxinf_kernels.attention.problem import Problem
from jaxinf_kernels.operation import Kernel, Rule

LARGEST = 256
"""Head dimension up to which a block of threads holds its queries."""
SMALL = 128 * 128
"""Logits of a head below which a kernel has nothing to win."""


def refusal(spec: Any, arrays: Any) -> str | None:
    """Return why the kernels do not take a problem, or its reverse rule; None where they do."""
    problem = _problem(spec)
    q, k, v = arrays[:3]
    if problem.how.known is not None and problem.how.known.name not in ("h100", "h200"):
        return (
            f"the kernel is for h100 and h200, not {problem.how.known.name}: leave "
            "implementation= out"
        )
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"the kernel takes bfloat16 and float16, not {q.dtype}: cast with astype"
    if max(q.shape[3], v.shape[3]) > LARGEST:
        return (
            f"head dimensions are {q.shape[3]} and {v.shape[3]}, of which the kernel takes up to "
            f"{LARGEST}: divide heads"
        )
    if not (q.shape[2] and k.shape[2] and q.shape[3] and v.shape[3]):
        return "there are no queries, no keys or no head dimension"
    if isinstance(spec, Rule):
        active = problem.operands(spec.active)
        if active.slopes:
            return (
                "the kernel has no derivative of slopes: stop_gradient them where they are "
                "constants"
            )
        if active.bias:
            return "the kernel has no derivative of the bias: stop_gradient it where it is constant"
    return None


def idle(spec: Any, arrays: Any) -> str | None:
    """Return why the plain form is as fast; None where it is not."""
    q, k = arrays[:2]
    if q.shape[2] * k.shape[2] < SMALL:
        return f"a head has fewer than {SMALL} logits"
    return None


def attend(*arrays: Array, spec: Problem, interpret: Any = False) -> tuple[Array, Array]:
    """See :func:`gpu.attend`."""
    return gpu.attend(*arrays, spec=spec, blocks=_blocks(spec), interpret=interpret)


def pull(*args: Array, spec: Rule, interpret: Any = False) -> tuple[Array, ...]:
    """Return the cotangents of the active operands."""
    problem = _problem(spec)
    arrays, outputs, cotangents = spec.split(args)
    given = problem.operands(arrays)
    active = problem.operands(spec.active)
    *found, delta = gpu_backward.pull(
        problem, given, outputs, cotangents, _blocks(problem), interpret
    )
    back = [
        summed(value, like)
        for on, like, value in zip(active[:3], given[:3], found, strict=True)
        if on
    ]
    if given.sinks is not None and active.sinks:
        share = jnp.exp(given.sinks[:, :, None] - outputs[1])
        back.append(summed(-jnp.sum(share * delta, axis=2), given.sinks))
    return tuple(back)


def _problem(spec: Any) -> Problem:
    return spec.spec if isinstance(spec, Rule) else spec


def _blocks(spec: Problem) -> Blocks:
    return spec.how.blocks or Blocks()


VALUE = Kernel(attend, refusal, idle)
REVERSE = Kernel(pull, refusal, idle)
