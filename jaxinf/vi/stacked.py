"""Many layers of one kind as one scan."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, carry, check_key, record, static
from jaxinf.vi.bijection import check_bijection, pull
from jaxinf.vi.checks import check_least


@record
class Stacked:
    """Layers of one kind, one after another; see :func:`stacked`."""

    layers: Leaf
    """The layers' numbers with a leading axis."""
    reverse: bool = static()

    @property
    def dim(self) -> int | None:
        """How many numbers it moves, where its layers know."""
        return getattr(self.layers, "dim", None)

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and the log of the determinant of dz / du."""

        def step(held: tuple[Array, Array], layer: Any) -> tuple[tuple[Array, Array], None]:
            z, log_det = layer.forward(held[0])
            return (self._turn(z), held[1] + log_det), None

        (z, total), _ = jax.lax.scan(step, (u, carry(u, 0.0)), self.layers)
        return self._straighten(z), total

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u."""
        turn = self._turn

        def step(z: Array, layer: Any) -> tuple[Array, None]:
            return layer.inverse(turn(z)), None

        return jax.lax.scan(step, self._straighten(z), self.layers, reverse=True)[0]

    def pull(self, z: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return u, and the log-determinant of dz / du there."""

        def step(held: tuple[Array, Array], layer: Any) -> tuple[tuple[Array, Array], None]:
            u, log_det = pull(layer, self._turn(held[0]))
            return (u, held[1] + log_det), None

        start = self._straighten(z), carry(z, 0.0)
        return jax.lax.scan(step, start, self.layers, reverse=True)[0]

    def _turn(self, z: Array) -> Array:
        """Reverse the numbers between layers."""
        return z[::-1] if self.reverse else z

    def _straighten(self, z: Array) -> Array:
        """Undo what is left of the reversals after the last layer."""
        odd = jax.tree.leaves(self.layers)[0].shape[0] % 2
        return self._turn(z) if odd else z


def stacked(key: Key, make: Callable[..., Any], layers: int, *, reverse: bool = False) -> Stacked:
    r"""Layers of one kind, one after another, as one scan.

    .. math:: T = P^K \circ (P \circ T_K) \circ \dots \circ (P \circ T_1)

    P reverses the numbers, or is the identity; :math:`P^K` undoes what is left of the reversals,
    so that the whole is the identity where its layers are.

    Args:
      key: a typed key, split over the layers.
      make: ``make(key) -> bijection``, the same sizes for every key.
      layers: K, how many.
      reverse: whether the numbers are reversed between layers, for those that move only some.

    Returns:
      The composition, itself a bijection, which compiles as fast as one layer.

    Raises:
      TypeError: where ``make`` returns no bijection.
      ValueError: for fewer than one layer.

    Example:
      ``vi.stacked(key, lambda key: vi.planar(key, 2), 8)``
    """
    check_key(key)
    check_least(layers=layers)
    made = jax.vmap(make)(jax.random.split(key, layers))
    check_bijection(made)
    return Stacked(made, reverse)
