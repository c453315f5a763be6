"""A target from a function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, record, static
from jaxinf.target.layout import Layout, layout


@record
class Density:
    """A target whose likelihood is a function; see :func:`density`."""

    data: Leaf
    prior: Leaf
    log_density: Callable[..., Any] = static()
    layout: Layout = static()

    @property
    def dim(self) -> int:
        """How many numbers a position has."""
        return self.layout.dim

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each number of a position."""
        return self.layout.names

    def log_prior(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the prior's log density, 0 without one."""
        if self.prior is None:
            return jnp.zeros((), z.dtype)
        return self.prior.log_prob(self.layout.split(z))

    def log_likelihood(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the function's value."""
        value = self.log_density(self.data, self.layout.split(z))
        if jnp.shape(value) != ():
            raise ValueError(
                f"the log density must be one number, got shape {jnp.shape(value)}. Sum it over "
                "what is independent; positions are one at a time."
            )
        return jnp.asarray(value, z.dtype)

    def log_prob(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return their sum."""
        return self.log_prior(z) + self.log_likelihood(z)

    def constrain(self, z: Float[Array, " dim"]) -> PyTree:
        """Return the pytree that a position stands for."""
        return self.layout.split(z)

    def unconstrain(self, values: PyTree) -> Float[Array, " dim"]:
        """Return the position of a pytree."""
        return self.layout.join(values)

    def sample_prior(self, key: Key) -> Float[Array, " dim"]:
        """Draw a position from the prior."""
        if self.prior is None:
            raise ValueError(
                "this target has no prior to draw from. Give density(prior=...) a law with "
                "sample(key) and log_prob(x), or pass the starts."
            )
        return self.layout.join(self.prior.sample(key))


def density(
    log_density: Callable[[Any, Any], Any], like: PyTree, data: PyTree = (), *, prior: Any = None
) -> Density:
    r"""A target from a function of data and values.

    .. math:: \log\pi(x) = \log p(x) + f(\mathrm{data}, x)

    Args:
      log_density: f, ``(data, x) -> `` one number; traced once for data of one shape.
      like: a pytree of arrays or of their shapes (``jax.ShapeDtypeStruct``), the form of x. All of
        its numbers are real and unbounded.
      data: a pytree of arrays, the leaves of the target.
      prior: a law with ``sample(key)`` and ``log_prob(x)`` on x, such as ``core.gaussian``; without
        one p = 1.

    Returns:
      The target.

    Raises:
      ValueError: where ``like`` holds no number.

    Example:
      ``funnel = target.density(lambda _, x: ..., jnp.zeros(10))``
    """
    found = layout(like)
    if found.dim == 0:
        raise ValueError(f"like must hold numbers, got {like!r}. Pass jnp.zeros(dim).")
    return Density(jax.tree.map(jnp.asarray, data), prior, log_density, found)
