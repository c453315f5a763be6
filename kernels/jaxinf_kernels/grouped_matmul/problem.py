"""What a grouped product is asked for, apart from its arrays."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array

from jaxinf_kernels.formats import Format, Quantised
from jaxinf_kernels.operation import How


class Operands(NamedTuple):
    """All arrays, each with the batch in front; an axis of one there serves all of it."""

    x: Array
    """[B, N, K]"""
    w: Array | Quantised
    """[B, G, K, M]"""
    sizes: Array
    """[B, G]"""


@dataclass(frozen=True)
class Problem:
    """The static part: hashable, and the same for all arrays of the same kind."""

    form: Format | None
    """What x is rounded to, and w where it is not held."""
    held: bool
    """Whether w comes as elements and scales."""
    how: How

    def operands(self, arrays: Any) -> Operands:
        """Name the arrays of a flat list."""
        if not self.held:
            return Operands(*arrays)
        x, elements, scales, sizes = arrays
        assert self.form is not None
        return Operands(x, Quantised(elements, scales, None, self.form, -2), sizes)

    def flat(self, operands: Operands) -> list[Array]:
        """Return the arrays as a flat list."""
        x, w, sizes = operands
        return [x, w.elements, w.scales, sizes] if isinstance(w, Quantised) else [x, w, sizes]
