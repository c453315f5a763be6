"""A target in other coordinates."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, record


@runtime_checkable
class Bijection(Protocol):
    """A smooth map of R^dim onto itself; batches by ``jax.vmap``."""

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and the log of the determinant of dz / du."""
        ...

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u."""
        ...


@record
class Mapped:
    """The target of u, for z = T(u); see :func:`mapped`."""

    target: Leaf
    bijection: Leaf

    @property
    def dim(self) -> int:
        """How many numbers a position has."""
        return self.target.dim

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the target's own numbers, of which u has as many."""
        return self.target.names

    def log_prior(self, u: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return log p(u), which counts the map's Jacobian."""
        z, log_det = self.bijection.forward(u)
        return self.target.log_prior(z) + log_det

    def log_likelihood(self, u: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return log L(T(u))."""
        return self.target.log_likelihood(self.bijection.forward(u)[0])

    def log_prob(self, u: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return their sum."""
        z, log_det = self.bijection.forward(u)
        return self.target.log_prob(z) + log_det

    def constrain(self, u: Float[Array, " dim"]) -> PyTree:
        """Return the values that u stands for."""
        return self.target.constrain(self.bijection.forward(u)[0])

    def unconstrain(self, values: PyTree) -> Float[Array, " dim"]:
        """Return the u of values."""
        return self.bijection.inverse(self.target.unconstrain(values))

    def sample_prior(self, key: Key) -> Float[Array, " dim"]:
        """Draw u from the prior."""
        return self.bijection.inverse(self.target.sample_prior(key))


def mapped(target: Any, bijection: Any) -> Mapped:
    r"""A target in the coordinates u of z = T(u).

    .. math:: \log\pi(u) = \log\pi(T(u)) + \log\left|\det \partial T / \partial u\right|

    Args:
      target: of z.
      bijection: T, a :class:`Bijection`; ``smc.fit_transport`` finds one from particles.

    Returns:
      The target of u, with the same values, the same evidence and the prior of u.

    Raises:
      TypeError: for what is no bijection.
    """
    if not isinstance(bijection, Bijection):
        raise TypeError(
            f"{type(bijection).__name__} is no bijection: it needs forward(u) -> (z, log_det) and "
            "inverse(z) -> u."
        )
    return Mapped(target, bijection)
