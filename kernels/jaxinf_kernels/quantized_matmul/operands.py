"""Arguments as arrays with a batch of one, and what may be wrong with them."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.formats import Format, Quantised
from jaxinf_kernels.quantized_matmul.problem import ACTIVATIONS, Side
from jaxinf_kernels.quantized_matmul.sparse import Sparse

LONGEST = (2**31 - 1) // 128**2
"""Products of elements of eight bits whose sum fits 32 bits."""


def side(a: Any, form: Format | None = None) -> tuple[Side, list[Array]]:
    """Return how a matrix is given, and its arrays with a batch of one.

    Args:
      a: floats, :class:`Quantised` or :class:`Sparse`.
      form: what floats are quantised to on the way.
    """
    if isinstance(a, Quantised):
        scales = jnp.broadcast_to(a.scales, _one_each(a))
        arrays = [a.elements, scales, a.outer]
        made = Side(a.form, True, a.outer is not None)
    elif isinstance(a, Sparse) and a.form is not None:
        arrays = [a.values, a.places, a.scales, a.outer]
        made = Side(a.form, True, a.outer is not None, a.of)
    elif isinstance(a, Sparse):
        arrays, made = [a.values, a.places], Side(of=a.of)
    else:
        arrays, made = [a], Side(form)
    return made, [b[None] for b in arrays if b is not None]


def _one_each(a: Quantised) -> tuple[int, ...]:
    """The shape of scales that have an entry for each number off the axis."""
    shape = list(a.elements.shape)
    shape[a.axis] = a.scales.shape[a.axis]
    return tuple(shape)


def check(x: Any, w: Any, bias: Array | None, activation: str | None) -> None:
    """Raise unless these can be multiplied."""
    if len(x.shape) != 2 or len(w.shape) != 2 or x.shape[1] != w.shape[0] or not w.shape[0]:
        raise ValueError(
            f"the product takes x [n, k] and w [k, m] with k > 0, got {tuple(x.shape)} and "
            f"{tuple(w.shape)}: use jax.vmap for a batch, and w.T where w is [m, k]."
        )
    for name, a, axis in (("x", x, -1), ("w", w, -2)):
        if isinstance(a, Quantised):
            _check_held(name, a, axis)
        elif not isinstance(a, Sparse) and not jnp.issubdtype(a.dtype, jnp.floating):
            raise TypeError(
                f"{name} must be floats or Quantised, got {a.dtype}: whole numbers without scales "
                "are cast with astype."
            )
    if bias is not None and bias.shape != (w.shape[1],):
        raise ValueError(
            f"bias must have one number for each of {w.shape[1]} columns of w, got {bias.shape}."
        )
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(ACTIVATIONS)} or None, got {activation!r}."
        )


def check_length(k: int, forms: Any) -> None:
    """Raise where a sum of whole numbers might not fit 32 bits."""
    if k > LONGEST and all(f is not None and f.whole for f in forms):
        raise ValueError(
            f"sums of {k} products of whole numbers may leave 32 bits: split k into parts of at "
            f"most {LONGEST} and add their products, or leave activations out."
        )


def _check_held(name: str, a: Quantised, axis: int) -> None:
    """Raise where scales do not lie along what is summed over."""
    if a.axis != axis:
        raise ValueError(
            f"{name} must be quantised along what is summed over, axis {axis}, got one quantised "
            f"along {a.axis}: quantise(..., axis={axis})."
        )
    blocks, other = a.scales.shape[a.axis], -3 - a.axis
    if not blocks or a.shape[axis] % blocks or a.scales.shape[other] not in (1, a.shape[other]):
        raise ValueError(
            f"scales of {name}, shape {tuple(a.scales.shape)}, do not fit its elements, shape "
            f"{tuple(a.shape)}: one for each block along axis {axis}, and for each number or all "
            "along the other."
        )
