"""A diffusion transformer for images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxinf_kernels.attention import attention
from jaxtyping import Array, Float

from jaxinf.core import Band, stay
from jaxinf.nets.embedding import Embedding, check_image, check_sizes
from jaxinf.nets.network import Network, deviation, drawn_on_bands


class _Linear(nn.Module):
    """An affine map of each token by a product that can be replaced."""

    features: int
    matmul: Callable[..., Any]
    dtype: Any
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.zero else deviation
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (1, self.features), jnp.float32)
        y = self.matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        return y.astype(self.dtype) + bias.astype(self.dtype)


def _modulated(x: jax.Array, shift: jax.Array, scale: jax.Array, dtype: Any) -> jax.Array:
    """Layer normalisation of each token with statistics in float32, then scale and shift."""
    h = nn.LayerNorm(use_scale=False, use_bias=False, dtype=dtype)(x)
    return h * (1 + scale) + shift


class _Block(nn.Module):
    """Attention between tokens and a perceptron on each, both gated by the embedding."""

    heads: int
    attend: Callable[..., Any]
    matmul: Callable[..., Any]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, band: Band | None) -> jax.Array:
        x = stay(x)
        tokens, width = x.shape
        modulation = _Linear(6 * width, jnp.matmul, self.dtype, zero=True, name="modulate")
        parts = jnp.split(modulation(nn.silu(embedding)[None]), 6, axis=-1)
        h = _modulated(x, parts[0], parts[1], self.dtype)
        qkv = _Linear(3 * width, self.matmul, self.dtype, name="qkv")(h)
        q, k, v = jnp.moveaxis(qkv.reshape(tokens, 3, self.heads, -1), 1, 0)
        if band is not None:
            fresh = jnp.stack([k, v], axis=1)
            last = self.variable("context", "kv", jnp.zeros_like, fresh)
            k, v = jnp.moveaxis(band.whole(fresh, last.value), 1, 0)
            last.value = fresh
        h = self.attend(q, k, v).reshape(tokens, width)
        x = x + parts[2] * _Linear(width, self.matmul, self.dtype, name="out")(h)
        h = _modulated(x, parts[3], parts[4], self.dtype)
        h = nn.gelu(_Linear(4 * width, self.matmul, self.dtype, name="first")(h))
        return x + parts[5] * _Linear(width, self.matmul, self.dtype, name="second")(h)


class _Transformer(nn.Module):
    """The transformer; see :func:`transformer`."""

    width: int
    depth: int
    heads: int
    patch: int
    classes: int | None
    attend: Callable[..., Any]
    matmul: Callable[..., Any]
    dtype: Any
    remat: bool
    scan: bool

    @nn.compact
    def __call__(self, x: jax.Array, t: Any, cond: Any, band: Band | None = None) -> jax.Array:
        check_image(x, self.patch)
        height, width, channels = x.shape
        rows, columns, p = height // self.patch, width // self.patch, self.patch
        block = nn.remat(_Block, prevent_cse=not self.scan) if self.remat else _Block
        e = Embedding(self.width, self.classes, self.dtype, name="embedding")(t, cond)
        tokens = x.reshape(rows, p, columns, p, channels).swapaxes(1, 2)
        tokens = tokens.reshape(rows * columns, p * p * channels)
        h = _Linear(self.width, jnp.matmul, self.dtype, name="stem")(tokens)
        h = h + _places(rows, columns, self.width, band).astype(self.dtype)
        options = (self.heads, self.attend, self.matmul, self.dtype)
        if self.scan:
            over = nn.scan(
                lambda one, h, _: (one(h, e, band), None),
                variable_axes={"params": 0, "context": 1},
                split_rngs={"params": True},
                length=self.depth,
            )
            h, _ = over(block(*options, name="blocks"), h, None)
        else:
            for i in range(self.depth):
                h = block(*options, name=f"block_{i}")(h, e, band)
        modulation = _Linear(2 * self.width, jnp.matmul, self.dtype, zero=True, name="modulate")
        shift, scale = jnp.split(modulation(nn.silu(e)[None]), 2, axis=-1)
        last = _Linear(p * p * channels, jnp.matmul, self.dtype, zero=True, name="last")
        h = last(_modulated(h, shift, scale, self.dtype))
        return h.reshape(rows, columns, p, p, channels).swapaxes(1, 2).reshape(x.shape)


def _places(rows: int, columns: int, width: int, band: Band | None) -> jax.Array:
    """Return the positions of the image's tokens, those of a band among the whole image's."""
    if band is None:
        return positions(rows, columns, width)
    return band.own(positions(rows * jax.lax.axis_size(band.axis), columns, width))


def positions(rows: int, columns: int, width: int) -> Float[Array, "{rows*columns} {width}"]:
    """Sines and cosines of each token's row and column; a quarter of the width for each."""
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4, endpoint=False)
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = np.concatenate([np.outer(row, frequencies), np.outer(column, frequencies)], axis=1)
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)


def transformer(
    width: int = 128,
    depth: int = 4,
    *,
    heads: int = 4,
    patch: int = 2,
    classes: int | None = None,
    attend: Callable[..., Any] = attention,
    matmul: Callable[..., Any] = jnp.matmul,
    dtype: Any = jnp.float32,
    remat: bool = False,
    scan: bool = False,
) -> Network:
    """A transformer over patches of images of shape (h, w, c), for noise level and class.

    Blocks are modulated and gated by the embedding of noise level and class; gates and the last
    layer start at zero (adaLN-Zero), so blocks start as the identity and the network at zero.

    Args:
      width: of a token.
      depth: number of blocks.
      heads: attention heads, each of ``width / heads`` numbers.
      patch: side of the square of pixels that makes one token.
      classes: how many classes ``cond`` can name; class ``classes`` means none. ``None`` for a
        network without.
      attend: ``(q, k, v) -> out`` on arrays [tokens, heads, width / heads], in every block. On a
        band of an image (see ``Network.apply``) k and v are the whole image's, q the band's.
      matmul: ``(x, w) -> y`` with x [tokens, a] and w [a, b], for the four products of a block;
        low-bit formats go here.
      dtype: of the computation; parameters are float32 and so are normalisation statistics and,
        by the default ``attend``, the softmax.
      remat: recompute the blocks in reverse mode instead of storing them.
      scan: compile one block and loop over all, whose parameters are stacked under ``blocks``; a
        deep network then compiles as fast as a shallow one.

    Returns:
      A :class:`Network` whose ``apply`` takes one image, and ``apply.on_band`` a band of one.

    Raises:
      ValueError: when a size is not positive or the heads do not divide the width; at trace time
        for an image that patches do not tile, and for a condition that is missing, not expected
        or out of range.

    Reference:
      W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers", ICCV 2023, section 3.2.
    """
    check_sizes(width=width, depth=depth, heads=heads, patch=patch, classes=classes)
    if width % heads or width % 4:
        raise ValueError(
            f"width must be a multiple of heads and of 4, got width {width} with {heads} heads."
        )
    return drawn_on_bands(
        _Transformer(width, depth, heads, patch, classes, attend, matmul, dtype, remat, scan)
    )
