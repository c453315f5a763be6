"""The randomness of a sampler: a stream of white increments, one a pair of times."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
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

    The pair and the index are put into the two words of the step's key. Threefry needs no more: its
    keys give independent streams as soon as they differ (Parallel Random Numbers: As Easy as 1, 2,
    3, Salmon et al., 2011), and each further hash would cost as much as the draw.
    """

    step_key: Leaf
    index: Leaf
    shape: tuple[int, ...] = static()
    dtype: Leaf = static()

    def key(self, t: Scalar, s: Scalar) -> Key:
        """Return this sample's key for the pair (t, s), for draws that are not Gaussian."""
        pair = _bits(t) * np.uint32(0x9E3779B1) + _bits(s)
        words = jax.random.key_data(self.step_key)
        words = words.at[0].set(words[0] ^ pair)
        words = words.at[-1].set(words[-1] ^ jnp.asarray(self.index, jnp.uint32))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(self.step_key))

    def increment(self, t: Scalar, s: Scalar) -> Array:
        """Draw white noise of unit variance, of one sample's shape."""
        return jax.random.normal(self.key(t, s), self.shape, self.dtype)


def _bits(t: Scalar) -> Array:
    return jax.lax.bitcast_convert_type(jnp.asarray(t, jnp.float32), jnp.uint32)
