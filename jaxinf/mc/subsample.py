"""Targets of part of the data."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, record, static
from jaxinf.target import Density


@record
class Rescaled:
    """A target whose likelihood counts several times."""

    target: Leaf
    times: Leaf

    @property
    def dim(self) -> int:
        """How many numbers a position has."""
        return self.target.dim

    def log_prob(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the log prior and the rescaled log-likelihood."""
        return self.target.log_prior(z) + self.times * self.target.log_likelihood(z)


@record
class Subsample:
    """Draws part of a target's data; see :func:`subsample`."""

    size: int = static()

    def __call__(self, key: Key, target: Any) -> Rescaled:
        """Return the target of some examples, its likelihood rescaled."""
        if not isinstance(target, Density):
            raise TypeError(
                f"examples are drawn from the data of target.density(..., data=...), got "
                f"{type(target).__name__}; pass a function (key, target) -> target of your own"
            )
        sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(target.data)}
        if len(sizes) != 1 or self.size > min(sizes):
            raise ValueError(
                f"the data must have one leading axis of at least {self.size} examples, got "
                f"lengths {sorted(sizes)}"
            )
        (n,) = sizes
        rows = jax.random.choice(key, n, (self.size,), replace=False)
        data = jax.tree.map(lambda leaf: leaf[rows], target.data)
        return Rescaled(dataclasses.replace(target, data=data), n / self.size)


def subsample(size: int) -> Subsample:
    r"""Gradients from some examples, drawn without replacement in each step.

    .. math:: \nabla \log\pi(z) \approx \nabla\log p(z) + \frac{n}{m} \sum_{j \in S} \nabla\log
              L_j(z), \qquad |S| = m

    It is unbiased where the log-likelihood is a sum over the leading axis of the data.

    Args:
      size: m.

    Returns:
      What ``mc.structured_sgld(batches=...)`` takes, for targets of ``target.density``.

    Raises:
      ValueError: for a size below 1, and when called with data of fewer examples.
      TypeError: when called with another kind of target.

    Reference:
      M. Welling and Y. W. Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics",
      ICML 2011, equation 4.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}.")
    return Subsample(size)
