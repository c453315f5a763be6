"""Checks of what is handed to this room: counts, numbers, targets."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf.core import is_concrete


def check_positive(name: str, value: Any) -> None:
    """Raise for numbers that are not positive, where they are concrete."""
    if is_concrete(value) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name} must be positive, got {value}.")


def check_least(least: int = 1, **sizes: int) -> None:
    """Raise for counts and sizes below the least."""
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}.")


def check_density(target: Any) -> None:
    """Raise for what has no log density."""
    if not hasattr(target, "log_prob"):
        raise TypeError(
            f"{type(target).__name__} has no log_prob: pass target.density(...), "
            "target.program(...) or grad.annotate(program, data)."
        )


def check_target(target: Any, start: Any) -> None:
    """Raise for a target without a density or a gradient, or a start of another dimension."""
    check_density(target)
    shape = jnp.shape(start)
    dim = getattr(target, "dim", None)
    if len(shape) != 1 or (dim is not None and shape[0] != dim):
        wanted = "(dim,)" if dim is None else f"({dim},), one position of the target"
        raise ValueError(f"start must have shape {wanted}, got {shape}.")
    like = jax.ShapeDtypeStruct(shape, jnp.result_type(start, float))
    try:
        jax.eval_shape(jax.grad(target.log_prob), like)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(
            "the target's log_prob has no gradient at a position of shape "
            f"{shape}: {error}. Write it in jax.numpy on floats, one number a position."
        ) from error
