"""What inference asks of an unnormalised density."""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key


@runtime_checkable
class Target(Protocol):
    r"""An unnormalised density on R^dim, with its data as leaves.

    .. math:: \log\pi(z) = \log p(z) + \log L(z)

    A position z is one vector of real numbers; ``constrain`` gives the values that it stands for,
    and both parts count the logarithm of that map's Jacobian to the prior. Batches come by
    ``jax.vmap``.
    """

    @property
    def dim(self) -> int:
        """How many numbers a position has."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each number of a position."""
        ...

    def log_prior(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return log p(z), normalised where the prior is proper."""
        ...

    def log_likelihood(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return log L(z)."""
        ...

    def log_prob(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return their sum."""
        ...

    def constrain(self, z: Float[Array, " dim"]) -> PyTree:
        """Return the values that a position stands for."""
        ...

    def unconstrain(self, values: PyTree) -> Float[Array, " dim"]:
        """Return the position of values."""
        ...

    def sample_prior(self, key: Key) -> Float[Array, " dim"]:
        """Draw a position from the prior."""
        ...
