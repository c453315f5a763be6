"""What networks know besides their input: the noise level and the class."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxinf.nets.network import deviation


def fourier_features(t: Float[Array, ""], count: int) -> Float[Array, " {2*count}"]:
    """Sines and cosines of ``t`` with angular frequencies from 1/2 to 32, evenly in their log.

    The lowest turns by less than half a circle over [-2.5, 2.5]; the highest resolves changes of
    the signal-to-noise ratio by a fifth.
    """
    frequencies = jnp.asarray(np.geomspace(0.5, 32.0, count), t.dtype)
    return jnp.concatenate([jnp.sin(frequencies * t), jnp.cos(frequencies * t)])


def dense(features: int, *, dtype: Any, name: str, zero: bool = False) -> nn.Dense:
    """An affine map of the last axis, drawn by LeCun's rule or zero."""
    init = nn.initializers.zeros if zero else deviation
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


class Embedding(nn.Module):
    """A vector of ``width`` numbers from the noise level and the class."""

    width: int
    classes: int | None
    dtype: Any

    @nn.compact
    def __call__(self, t: Any, cond: Any) -> jax.Array:
        """The embedding, to be put through a nonlinearity by those who use it."""
        t = jnp.asarray(t, jnp.promote_types(jnp.result_type(t), jnp.float32))
        if t.shape != ():
            raise ValueError(
                f"the noise level must be one number, got shape {t.shape}. A network takes one "
                "example; use jax.vmap(apply, (None, 0, 0, 0)) for a batch."
            )
        label = self._label(cond)
        h = fourier_features(t, max(self.width // 8, 4)).astype(self.dtype)
        h = dense(self.width, dtype=self.dtype, name="first")(h)
        h = dense(self.width, dtype=self.dtype, name="second")(nn.silu(h))
        if label is None or self.classes is None:
            return h
        ones = nn.initializers.ones
        rows = nn.Embed(
            self.classes + 1, self.width, dtype=self.dtype, embedding_init=ones, name="label"
        )
        return h + rows(label)

    def _label(self, cond: Any) -> jax.Array | None:
        """The class, once ``cond`` is known to be what the network was built for."""
        if self.classes is None:
            if cond is not None:
                raise ValueError(
                    f"this network was built without classes but got cond = {cond}. "
                    "Pass cond=None, or build it with classes=."
                )
            return None
        if cond is None and not self.is_initializing():
            raise ValueError(
                f"this network was built with classes={self.classes} but got no cond. Pass a "
                f"class in [0, {self.classes}]; {self.classes} means no class."
            )
        return _check_label(self.classes if cond is None else cond, self.classes)


def _check_label(cond: Any, classes: int) -> jax.Array:
    """``cond`` as one class; what is out of range raises, or gives NaN where it is traced."""
    mend = f"Pass one whole number in [0, {classes}]; {classes} means no class."
    if jnp.shape(cond) != () or not jnp.issubdtype(jnp.result_type(cond), jnp.integer):
        kind = f"shape {jnp.shape(cond)} and dtype {jnp.result_type(cond)}"
        raise ValueError(f"cond must be one class, got {kind}. {mend} Use jax.vmap for a batch.")
    if not isinstance(cond, jax.core.Tracer) and not 0 <= int(cond) <= classes:
        raise ValueError(f"cond = {cond} is no class. {mend}")
    label = jnp.asarray(cond)
    # Embedding gives NaN beyond the table; a negative row would count from its end.
    return jnp.where(label < 0, classes + 1, label)


class Modulate(nn.Module):
    """Scale and shift by the embedding, to stand after a normalisation (before, it is erased)."""

    dtype: Any

    @nn.compact
    def __call__(self, h: jax.Array, embedding: jax.Array) -> jax.Array:
        """``h (1 + scale) + shift``, the identity at initialisation."""
        width = h.shape[-1]
        pair = dense(2 * width, dtype=self.dtype, zero=True, name="pair")
        scale, shift = jnp.split(pair(nn.silu(embedding)), 2)
        spread = (1,) * (h.ndim - 1) + (width,)
        return h * (1 + scale.reshape(spread)) + shift.reshape(spread)


def check_sizes(**sizes: int | None) -> None:
    """Raise unless every size that is given is a whole number of at least one."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")


def check_image(x: jax.Array, divisor: int) -> None:
    """Raise unless ``x`` is one image whose sides the network can halve."""
    if x.ndim != 3:
        raise ValueError(
            f"a network for images takes one of shape (height, width, channels), got {x.shape}. "
            "Use jax.vmap for a batch."
        )
    if x.shape[0] % divisor or x.shape[1] % divisor:
        raise ValueError(
            f"height and width must be multiples of {divisor} for this network, got {x.shape}. "
            "Pad the images or build it with fewer multipliers or smaller patches."
        )
