"""A small U-Net for images."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinf.core import stay
from jaxinf.nets.convolution import convolution
from jaxinf.nets.embedding import Embedding, Modulate, check_image, check_sizes, dense
from jaxinf.nets.network import Network, deviation, drawn

HEAD = 32
"""Channels of one attention head, or what divides them."""


def _normalise(h: jax.Array, dtype: Any) -> jax.Array:
    """Group normalisation of one image without parameters; statistics in float32."""
    groups = next(g for g in (8, 4, 2, 1) if h.shape[-1] % g == 0)
    norm = nn.GroupNorm(
        groups, use_scale=False, use_bias=False, dtype=dtype, reduction_axes=(-3, -2, -1)
    )
    return norm(h)


def _conv(features: int, size: int, dtype: Any, name: str, *, zero: bool = False) -> nn.Conv:
    """A convolution that keeps the image's size, with this room's algorithm."""
    return nn.Conv(
        features,
        (size, size),
        dtype=dtype,
        kernel_init=nn.initializers.zeros if zero else deviation,
        conv_general_dilated=convolution,
        name=name,
    )


class _Block(nn.Module):
    """A residual block of two convolutions, modulated by the embedding after normalisation."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        x, width = stay(x), x.shape[-1]
        h = _conv(width, 3, self.dtype, "first")(nn.silu(_normalise(x, self.dtype)))
        h = Modulate(self.dtype, name="modulate")(_normalise(h, self.dtype), embedding)
        h = _conv(width, 3, self.dtype, "second", zero=True)(nn.silu(h))
        return x + h


class _Attention(nn.Module):
    """Self-attention between all pixels, added to what it is given."""

    attend: Callable[..., Any]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        h = _normalise(x, self.dtype).reshape(-1, width)
        qkv = dense(3 * width, dtype=self.dtype, name="qkv")(h)
        q, k, v = jnp.moveaxis(qkv.reshape(len(h), 3, -1, math.gcd(width, HEAD)), 1, 0)
        out = dense(width, dtype=self.dtype, zero=True, name="out")
        return x + out(self.attend(q, k, v).reshape(len(h), width)).reshape(x.shape)


class _UNet(nn.Module):
    """The U-Net; see :func:`unet`."""

    channels: int
    multipliers: tuple[int, ...]
    classes: int | None
    attend: Callable[..., Any] | None
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, t: Any, cond: Any) -> jax.Array:
        depth = len(self.multipliers)
        check_image(x, 2 ** (depth - 1))
        block = nn.remat(_Block) if self.remat else _Block
        widths = [self.channels * m for m in self.multipliers]
        e = Embedding(4 * self.channels, self.classes, self.dtype, name="embedding")(t, cond)
        h = _conv(widths[0], 3, self.dtype, "stem")(x.astype(self.dtype))
        kept = []
        for i, width in enumerate(widths):
            if i > 0:
                h = dense(width, dtype=self.dtype, name=f"reduce_{i}")(_fold(h))
            h = block(self.dtype, name=f"down_{i}")(h, e)
            kept.append(h)
        if self.attend is not None:
            h = _Attention(self.attend, self.dtype, name="attention")(h)
        h = block(self.dtype, name="middle")(h, e)
        for i, width in reversed(list(enumerate(widths))):
            h = jnp.concatenate([h, kept[i]], axis=-1)
            h = dense(width, dtype=self.dtype, name=f"merge_{i}")(h)
            h = block(self.dtype, name=f"up_{i}")(h, e)
            if i > 0:
                h = dense(widths[i - 1], dtype=self.dtype, name=f"enlarge_{i}")(h)
                h = jnp.repeat(jnp.repeat(h, 2, axis=0), 2, axis=1)
        h = nn.silu(_normalise(h, self.dtype))
        return _conv(x.shape[-1], 3, self.dtype, "last", zero=True)(h)


def _fold(h: jax.Array) -> jax.Array:
    """Every 2x2 pixels as one with four times the channels."""
    height, width, channels = h.shape
    h = h.reshape(height // 2, 2, width // 2, 2, channels).swapaxes(1, 2)
    return h.reshape(height // 2, width // 2, 4 * channels)


def unet(
    channels: int = 32,
    *,
    multipliers: Sequence[int] = (1, 2),
    classes: int | None = None,
    attend: Callable[..., Any] | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """A U-Net for images of shape (h, w, c), conditioned on the noise level and on a class.

    Each resolution has a residual block on the way down and one on the way up, which also sees what
    the first gave; one more stands between at the lowest. Blocks are modulated (scale and shift) by
    the embedding of noise level and class after a normalisation; their last layers start at zero,
    so the network starts at zero.
    With 32 channels and multipliers (1, 2) it has 367,000 parameters on 8x8x1 images.

    Args:
      channels: width at the full resolution.
      multipliers: widths of the resolutions in units of ``channels``; each resolution halves the
        one before, so (1, 2) suits 8x8 pixels and (1, 2, 2) suits 16x16.
      classes: how many classes ``cond`` can name; class ``classes`` means none. ``None`` for a
        network without.
      attend: self-attention at the lowest resolution, ``(q, k, v) -> out`` on arrays of shape
        (pixels, heads, width), such as ``jaxinf_kernels.attention.attention``. ``None`` for none.
      dtype: of the computation; parameters are float32 and so are normalisation statistics.
      remat: recompute the blocks in reverse mode instead of storing them.

    Returns:
      A :class:`Network` whose ``apply`` takes one image.

    Raises:
      ValueError: when a size is not positive; at trace time for an image whose sides cannot be
        halved, and for a condition that is missing, not expected or out of range.

    Reference:
      P. Dhariwal and A. Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021,
      section 3, for residual blocks with scale and shift after the normalisation.
    """
    check_sizes(channels=channels, classes=classes, multipliers=min(multipliers, default=0))
    return drawn(_UNet(channels, tuple(multipliers), classes, attend, dtype, remat))
