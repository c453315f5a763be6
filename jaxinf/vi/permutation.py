"""Numbers in another order."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import carry, record, static


@record
class Permutation:
    """Numbers in another order; see :func:`permutation`."""

    order: tuple[int, ...] = static()

    @property
    def dim(self) -> int:
        """How many numbers it moves."""
        return len(self.order)

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and 0."""
        return u[np.asarray(self.order)], carry(u, 0.0)

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u."""
        return z[np.argsort(self.order)]


def permutation(order: Sequence[int]) -> Permutation:
    r"""Numbers in another order, to stand between layers that move only some of them.

    .. math:: z_i = u_{\pi(i)}, \qquad \log|\det \partial z / \partial u| = 0

    Args:
      order: :math:`\pi`, each of 0 to dim - 1 once.

    Returns:
      The bijection; it has no number that is learnt.

    Raises:
      ValueError: for what is no permutation.
    """
    order = tuple(int(i) for i in order)
    if not order or sorted(order) != list(range(len(order))):
        raise ValueError(f"order must hold each of 0 to dim - 1 once, got {order}.")
    return Permutation(order)
