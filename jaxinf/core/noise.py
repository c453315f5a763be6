"""The randomness of a sampler: a stream of white increments, one a pair of times."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core.record import record, static
from jaxinf.core.types import Key, Leaf, Scalar


@runtime_checkable
class Noise(Protocol):
    """White increments of one sample's shape, of unit variance."""

    def increment(self, t: Scalar, s: Scalar) -> Array:
        """Draw the increment between two times."""
        ...


@record
class Independent:
    """Increments that are independent between steps and between samples.

    The draw is a function of (key of the step, t, s, index of the sample), so sample i is the same
    whatever the batch it is drawn in, and a stepper may draw for several pairs within one step.
    """

    step_key: Leaf
    index: Leaf
    shape: tuple[int, ...] = static()
    dtype: Leaf = static()

    def key(self, t: Scalar, s: Scalar) -> Key:
        """Return this sample's key for the pair (t, s), for draws that are not Gaussian."""
        key = jax.random.fold_in(self.step_key, _bits(t))
        return jax.random.fold_in(jax.random.fold_in(key, _bits(s)), self.index)

    def increment(self, t: Scalar, s: Scalar) -> Array:
        """Draw white noise of unit variance, of one sample's shape."""
        return jax.random.normal(self.key(t, s), self.shape, self.dtype)


def _bits(t: Scalar) -> Array:
    return jax.lax.bitcast_convert_type(jnp.asarray(t, jnp.float32), jnp.uint32)
