"""Checks of what users pass, made before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def check_key(key: Any, name: str = "key") -> None:
    """Raise unless ``key`` is one typed key.

    Args:
      key: what the caller passed.
      name: the argument's name, for the message.

    Raises:
      TypeError: for the old raw ``uint32`` keys and for anything that is no key.
      ValueError: for an array of several keys.
    """
    if not (hasattr(key, "dtype") and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)):
        kind = f"{type(key).__name__} of dtype {key.dtype}" if hasattr(key, "dtype") else repr(key)
        raise TypeError(
            f"{name} must be a typed key, got {kind}. Make one with jax.random.key(seed); "
            "jax.random.wrap_key_data(key) turns an old uint32 key into one."
        )
    if key.shape != ():
        raise ValueError(
            f"{name} must be one key, got an array of keys of shape {key.shape}. "
            "Pass one; per-sample keys are derived from it."
        )


def check_batch(x: Any, cond: PyTree = None, *, tokens: bool = False) -> None:
    """Raise unless ``x`` is a floating batch of examples and conditions have its leading axis.

    Args:
      x: examples, shape (batch, ...).
      cond: a pytree of conditions, or None.
      tokens: whether examples are whole numbers instead.

    Raises:
      TypeError: for examples that are not floating (not integer, for tokens).
      ValueError: for an empty batch, or conditions of another length.
    """
    shape, dtype = jnp.shape(x), jnp.result_type(x)
    if tokens and not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"tokens must be integers, got {dtype}; x.astype(jnp.int32) makes them so")
    if not tokens and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"examples must be floating, got {dtype}; data.dequantise(key, x, levels) turns "
            "integer levels into numbers in [-1, 1], x.astype(jnp.float32) keeps them"
        )
    if len(shape) < 1 or shape[0] == 0:
        raise ValueError(
            f"examples must be a batch of at least one, got shape {shape}; x[None] makes a batch "
            "of one example"
        )
    for leaf in jax.tree.leaves(cond):
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] != shape[0]:
            raise ValueError(
                f"conditions must have the batch's leading axis {shape[0]}, got shape "
                f"{jnp.shape(leaf)}; jnp.full({shape[0]}, label) repeats one label"
            )
