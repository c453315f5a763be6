"""Division and square root that stay finite at 0, in value and in gradient."""

import jax.numpy as jnp
from jaxtyping import Array


def divide(a: Array, b: Array) -> Array:
    """Return a / b, and 0 where b is 0, with gradient 0 there."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def root(x: Array) -> Array:
    """Return sqrt(max(x, 0)), with gradient 0 where x is not positive."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)
