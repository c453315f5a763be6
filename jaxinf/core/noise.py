"""The randomness of a sampler: a stream of white increments, one a pair of times."""

import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
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

    The draw is a function of (key, step, t, s, index of the sample), so sample i is the same
    whatever the batch it is drawn in, and a stepper may draw for several pairs within one step.

    Step, pair and index are put into the two words of the key. Threefry needs no more: its keys
    give independent streams as soon as they differ (Parallel Random Numbers: As Easy as 1, 2, 3,
    Salmon et al., 2011), and each hash more would cost as much as the draw, compiled and run. The
    key must come out of a hash itself (``split``, ``fold_in``): the words of ``jax.random.key(0)``
    and ``key(1)`` differ as the indices 0 and 1 do.
    """

    key: Leaf
    step: Leaf
    index: Leaf
    shape: tuple[int, ...] = static()
    dtype: Leaf = static()

    def key_of(self, t: Scalar, s: Scalar) -> Key:
        """Return this sample's key for the pair (t, s), for draws that are not Gaussian."""
        step = mixed(jnp.asarray(self.step, jnp.uint32))
        pair = mixed(mixed(_bits(t) ^ step) + _bits(s))
        words = jax.random.key_data(self.key)
        first, last = words[:1] ^ pair, words[-1:] ^ jnp.asarray(self.index, jnp.uint32)
        words = jnp.concatenate([first, words[1:-1], last])
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(self.key))

    def increment(self, t: Scalar, s: Scalar) -> Array:
        """Draw white noise of unit variance, of one sample's shape."""
        return normal(self.key_of(t, s), self.shape, self.dtype)


def mixed(word: Array) -> Array:
    """One multiplication and one shift that spread a word's bits (xorshift-multiply)."""
    word = word * np.uint32(0x9E3779B1)
    return word ^ (word >> 15)


def normal(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Return ``jax.random.normal(key, shape, dtype)``, the same numbers, for use inside a scan.

    JAX rolls Threefry's rounds into a loop on CPUs, which XLA compiles three times as slowly, and
    runs at half the speed, as the twenty rounds written out. Other dtypes than float32 and other
    generators than Threefry are handed to JAX.
    """
    key_data, size = jax.random.key_data(key), math.prod(shape)
    if key_data.shape != (2,) or dtype != jnp.float32 or not 0 < size < 2**32:
        return jax.random.normal(key, shape, dtype)
    low = lax.iota(jnp.uint32, size)
    high, low = _threefry(key_data, jnp.zeros_like(low), low)
    mantissa = (high ^ low) >> 9 | np.float32(1).view(np.uint32)
    unit = lax.bitcast_convert_type(mantissa, jnp.float32) - 1
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = jnp.maximum(unit * (1 - least) + least, least)
    return lax.optimization_barrier(np.float32(np.sqrt(2)) * lax.erf_inv(uniform)).reshape(shape)


def _threefry(key: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al., 2011, section 3) of the counters (x, y)."""
    words = [key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)]
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    x, y = x + words[0], y + words[1]
    for group in range(5):
        for by in rotations[group % 2]:
            x = lax.add(x, y)
            left = lax.shift_left(y, np.uint32(by))
            right = lax.shift_right_logical(y, np.uint32(32 - by))
            y = lax.bitwise_xor(x, lax.bitwise_or(left, right))
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def _bits(t: Scalar) -> Array:
    return lax.bitcast_convert_type(jnp.asarray(t, jnp.float32), jnp.uint32)
