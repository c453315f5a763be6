"""What differs between the versions of JAX that are supported, and what JAX keeps to itself."""

from contextlib import AbstractContextManager
from typing import Any

import jax
from jax._src import config
from jaxtyping import Array

OLD: dict[str, str] = {}
"""Platforms whose kernels need another version of JAX, and which."""
if jax.__version_info__ < (0, 12):
    OLD["cuda"] = f"its kernels for GPUs need jax 0.12 or later, this is {jax.__version__}"


def divided_by_compiler(context: Any) -> bool:
    """Whether a program that is being lowered will be divided over several devices by the compiler.

    Not so where there is one device, and under ``jax.shard_map`` over all axes, where each device's
    part is written out.

    Args:
      context: of JAX's lowering.
    """
    axes = context.module_context.axis_context
    if hasattr(axes, "manual_axes"):
        return set(axes.manual_axes) != set(axes.mesh.axis_names)
    return getattr(axes, "num_devices", 1) > 1


def unchecked() -> AbstractContextManager[Any]:
    """Within ``jax.shard_map``, do not check over which axes arrays vary: kernels do not say so."""
    return config._check_vma(False)


def vary_alike(arrays: Any) -> list[Array]:
    """Within ``jax.shard_map``, have arrays vary over the same axes.

    The transpose sums the cotangent of an array that serves all devices, which a kernel does not.
    """
    own = [_varying(a) for a in arrays]
    every = frozenset().union(*own)
    return [
        jax.lax.pcast(a, tuple(sorted(every - has)), to="varying") if every - has else a
        for a, has in zip(arrays, own, strict=True)
    ]


def _varying(a: Any) -> frozenset[str]:
    """Return the axes of ``jax.shard_map`` that an array varies over."""
    kind: Any = jax.typeof(a)
    return frozenset(getattr(getattr(kind, "mat", kind), "varying", getattr(kind, "vma", ())))
