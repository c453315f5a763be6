"""A residual multilayer perceptron for vectors."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxinf.nets.embedding import Embedding, Modulate, check_sizes, dense
from jaxinf.nets.network import Network, drawn


class _Block(nn.Module):
    """A residual block, modulated by the embedding after normalisation."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        width = x.shape[-1]
        h = nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(x)
        h = Modulate(self.dtype, name="modulate")(h, embedding)
        h = nn.silu(dense(width, dtype=self.dtype, name="first")(h))
        return x + dense(width, dtype=self.dtype, zero=True, name="second")(h)


class _MLP(nn.Module):
    """The perceptron; see :func:`mlp`."""

    width: int
    depth: int
    classes: int | None
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, t: Any, cond: Any) -> jax.Array:
        if x.ndim != 1:
            raise ValueError(
                f"mlp takes one vector of shape (d,), got {x.shape}. Use jax.vmap for a batch."
            )
        block = nn.remat(_Block) if self.remat else _Block
        e = Embedding(self.width, self.classes, self.dtype, name="embedding")(t, cond)
        h = dense(self.width, dtype=self.dtype, name="stem")(x.astype(self.dtype))
        for i in range(self.depth):
            h = block(self.dtype, name=f"block_{i}")(h, e)
        return dense(len(x), dtype=self.dtype, zero=True, name="last")(h)


def mlp(
    width: int = 128,
    depth: int = 3,
    *,
    classes: int | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> Network:
    """A residual network for vectors of shape (d,), conditioned on noise level and class.

    Each block normalises, scales and shifts by the embedding of noise level and class, and adds a
    layer of ``width`` units. The residual stream itself is linear in the input and is not
    normalised at the end, so the output can grow with the input. The network starts at zero.

    Args:
      width: of the residual stream.
      depth: number of blocks.
      classes: how many classes ``cond`` can name; class ``classes`` means none. ``None`` for a
        network without.
      dtype: of the computation; parameters are float32 and so are normalisation statistics.
      remat: recompute the blocks in reverse mode instead of storing them.

    Returns:
      A :class:`Network` whose ``apply`` takes one vector.

    Raises:
      ValueError: when a size is not positive; at trace time for anything but a vector, and for a
        condition that is missing, not expected or out of range.
    """
    check_sizes(width=width, depth=depth, classes=classes)
    return drawn(_MLP(width, depth, classes, dtype, remat))
