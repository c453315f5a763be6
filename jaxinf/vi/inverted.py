"""A bijection the other way round."""

from typing import Any

from jaxtyping import Array, Float

from jaxinf.core import Leaf, record
from jaxinf.vi.bijection import check_bijection, pull


@record
class Inverted:
    """A bijection the other way round; see :func:`inverted`."""

    bijection: Leaf

    @property
    def dim(self) -> int | None:
        """How many numbers it moves, where the bijection knows."""
        return getattr(self.bijection, "dim", None)

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and the log of the determinant of dz / du."""
        z, log_det = pull(self.bijection, u)
        return z, -log_det

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u."""
        return self.bijection.forward(z)[0]

    def pull(self, z: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return u, and the log-determinant of dz / du there."""
        u, log_det = self.bijection.forward(z)
        return u, -log_det


def inverted(bijection: Any) -> Inverted:
    r"""A bijection the other way round.

    .. math:: S = T^{-1}, \qquad \log\left|\det \frac{\partial S}{\partial u}\right| =
        -\log\left|\det \frac{\partial T}{\partial z}\right|_{z = S(u)}

    Args:
      bijection: T. Of :func:`autoregressive`, which draws fast, the inverse has its density fast:
        what is fitted to data rather than to a density is built so.

    Returns:
      The bijection S.

    Raises:
      TypeError: for what is no bijection.

    Reference:
      G. Papamakarios, T. Pavlakou and I. Murray, "Masked Autoregressive Flow for Density
      Estimation" (2017), section 3.1.
    """
    check_bijection(bijection)
    return Inverted(bijection)
