"""What a product is asked for, apart from its arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf_kernels.formats import Format
from jaxinf_kernels.operation import How

DEFAULT = How()
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda a: jax.nn.gelu(a, approximate=True),
    "silu": lambda a: a * jax.nn.sigmoid(a),
    "relu": jax.nn.relu,
}
"""By name; gelu is the form with tanh."""


@dataclass(frozen=True)
class Side:
    """How one of the two matrices is given."""

    form: Format | None = None
    """Of its elements; None for floats."""
    held: bool = False
    """Whether it is given in the format, and not to be quantised on the way."""
    outer: bool = False
    """Whether its scales have a second level."""
    of: int = 0
    """Weights in a group of sparse ones; 0 where it is dense."""

    @property
    def names(self) -> list[str]:
        """What its arrays are, in order."""
        sparse = ["places"] if self.of else []
        if not self.held:
            return ["floats", *sparse]
        return ["elements", *sparse, "scales", *(["outer"] if self.outer else [])]


class Operands(NamedTuple):
    """All arrays, each with the batch in front; an axis of one there serves all of it."""

    x: dict[str, Array]
    """``floats`` or ``elements`` [B, N, K], ``scales`` [B, N, blocks], ``outer`` [B]."""
    w: dict[str, Array]
    """``floats`` or ``elements`` [B, K, M], ``scales`` [B, blocks, M], ``outer`` [B]; of sparse
    ones [B, kept, K / of, M] and ``places`` [B, K / of, M]."""
    bias: Array | None
    """[B, M]"""
    key: Array | None
    """[B, words] data of a key."""


@dataclass(frozen=True)
class Problem:
    """The static part: hashable, and the same for all arrays of the same kind."""

    x: Side
    w: Side
    bias: bool
    activation: str | None
    dtype: Any
    """Of the result."""
    gradients: tuple[Format, Format] | None = None
    """In reverse products, the cotangent's format and its partner's; None for floats."""
    key: Any = None
    """The implementation of the key by which cotangents are rounded; None rounds to nearest."""
    how: How = DEFAULT

    @property
    def names(self) -> list[str]:
        """What all operands are, in order."""
        x, w = ([f"{side} {n}" for n in s.names] for side, s in (("x", self.x), ("w", self.w)))
        extras = ["bias"] * self.bias + ["key"] * (self.key is not None)
        return [*x, *w, *extras]

    def operands(self, arrays: Sequence[Array]) -> Operands:
        """Name the arrays of a flat list."""
        rest = iter(arrays)
        x, w = ({name: next(rest) for name in side.names} for side in (self.x, self.w))
        bias = next(rest) if self.bias else None
        return Operands(x, w, bias, next(rest) if self.key is not None else None)

    def flat(self, given: Operands) -> list[Array]:
        """Return the arrays as a flat list."""
        extras = [a for a in (given.bias, given.key) if a is not None]
        return [*given.x.values(), *given.w.values(), *extras]

    def pairs(self, given: Operands) -> Any:
        """Return the dtype that factors are widened to where their elements are not multiplied.

        Floats keep theirs. In bfloat16 elements of eight bits and fewer are exact, and so are
        their products with scales of four bits.
        """
        both = (self.x, given.x), (self.w, given.w)
        floats = [arrays["floats"].dtype for side, arrays in both if side.form is None]
        return jnp.result_type(*floats) if floats else jnp.dtype(jnp.bfloat16)

    def slopes(self, given: Operands) -> Any:
        """Return the dtype of derivatives' products: that of the floats that are given."""
        floats = [a["floats"].dtype for a in (given.x, given.w) if "floats" in a]
        return jnp.result_type(*floats) if floats else jnp.dtype(jnp.float32)


def finish(
    total: Array, scales: Sequence[Array | None], bias: Array | None, activation: str | None
) -> Array:
    """Return the result of sums: scaled, shifted and through the activation."""
    for scale in scales:
        total = total if scale is None else total * scale
    total = total if bias is None else total + bias.astype(total.dtype)
    return total if activation is None else ACTIVATIONS[activation](total)
