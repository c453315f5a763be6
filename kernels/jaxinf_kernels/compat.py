"""What differs between the versions of JAX that are supported, and what JAX keeps to itself."""

from typing import Any


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
