"""Bijections one after another."""

from typing import Any

from jaxtyping import Array, Float

from jaxinf.core import Leaf, carry, record
from jaxinf.vi.bijection import check_bijection, common_dim, pull


@record
class Chain:
    """Bijections one after another; see :func:`chain`."""

    bijections: Leaf

    @property
    def dim(self) -> int | None:
        """How many numbers it moves, where its parts know."""
        return common_dim(self.bijections)

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and the log of the determinant of dz / du."""
        total = carry(u, 0.0)
        for bijection in self.bijections:
            u, log_det = bijection.forward(u)
            total = total + log_det
        return u, total

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u."""
        for bijection in reversed(self.bijections):
            z = bijection.inverse(z)
        return z

    def pull(self, z: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return u, and the log-determinant of dz / du there."""
        total = carry(z, 0.0)
        for bijection in reversed(self.bijections):
            z, log_det = pull(bijection, z)
            total = total + log_det
        return z, total


def chain(*bijections: Any) -> Chain:
    r"""Bijections one after another, the first one applied first.

    .. math:: T = T_K \circ \dots \circ T_1, \qquad
        \log\left|\det \frac{\partial T}{\partial u}\right| =
        \sum_k \log\left|\det \frac{\partial T_k}{\partial z_{k-1}}\right|

    Args:
      bijections: each with ``forward(u) -> (z, log_det)`` and ``inverse(z) -> u``. Many layers of
        one kind compile faster as :func:`stacked`.

    Returns:
      The composition, itself a bijection: for :func:`flow`, :func:`jaxinf.target.mapped`, or
      another chain. Of none it is the identity.

    Raises:
      TypeError: for what is no bijection.
      ValueError: for bijections of different dimensions.

    Reference:
      D. J. Rezende and S. Mohamed, "Variational Inference with Normalizing Flows" (2015), eqs. 6
      and 7.
    """
    for bijection in bijections:
        check_bijection(bijection)
    common_dim(bijections)
    return Chain(tuple(bijections))
