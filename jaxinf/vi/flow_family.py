"""A law carried through bijections as a family."""

from typing import Any

from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, record
from jaxinf.vi.bijection import common_dim, pull
from jaxinf.vi.chain import chain


@record
class Flow:
    """A law carried through a bijection; see :func:`flow`."""

    base: Leaf
    bijection: Leaf

    @property
    def dim(self) -> int | None:
        """How many numbers a draw has, where base or bijection knows."""
        return common_dim((self.base, self.bijection))

    def sample(self, key: Key) -> Float[Array, " dim"]:
        """Draw."""
        return self.bijection.forward(self.base.sample(key))[0]

    def log_prob(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the log density, in nats, by the bijection's inverse."""
        u, log_det = pull(self.bijection, x)
        return self.base.log_prob(u) - log_det

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Draw, and return the log density, without an inverse."""
        if hasattr(self.base, "sample_and_log_prob"):
            u, log_prob = self.base.sample_and_log_prob(key)
        else:
            u = self.base.sample(key)
            log_prob = self.base.log_prob(u)
        x, log_det = self.bijection.forward(u)
        return x, log_prob - log_det


def flow(base: Any, bijections: Any) -> Flow:
    r"""A law carried through bijections, a normalising flow.

    .. math:: z = T(u), \quad u \sim q_0, \qquad
        \log q(z) = \log q_0(u) - \log\left|\det \partial T / \partial u\right|

    Args:
      base: :math:`q_0`, with ``sample(key)`` and ``log_prob(u)``: :func:`mean_field`, whose numbers
        are then learnt too, or any law.
      bijections: T, or a tuple of bijections of which the first is applied first.

    Returns:
      The family; a draw with its density never inverts T, so that the bound of :func:`elbo` costs
      one pass.

    Raises:
      TypeError: for a base that cannot draw or has no density, and for what is no bijection.
      ValueError: where base and bijections have different dimensions.

    Reference:
      D. J. Rezende and S. Mohamed, "Variational Inference with Normalizing Flows" (2015), eqs. 5
      to 7; the bound of a fit, :func:`elbo` with this family, is their eq. 15.

    Example:
      ``vi.flow(vi.mean_field(2), vi.stacked(key, lambda key: vi.planar(key, 2), 8))``
    """
    if not (hasattr(base, "sample") and hasattr(base, "log_prob")):
        raise TypeError(
            f"{type(base).__name__} is no law: it needs sample(key) and log_prob(u), as "
            "vi.mean_field(dim) has."
        )
    parts = bijections if isinstance(bijections, tuple) else (bijections,)
    composed = chain(*parts)
    common_dim((base, *parts))
    return Flow(base, parts[0] if len(parts) == 1 else composed)
