"""Gaussian families."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Dense, Diagonal, Gaussian, Key, Leaf, record
from jaxinf.vi.checks import check_least, check_positive


@record
class GaussianFamily:
    """Gaussians; see :func:`mean_field`, :func:`full_rank` and :func:`low_rank`."""

    mean: Leaf
    log_scale: Leaf
    below: Leaf
    """Of the covariance's factor what lies under its diagonal, (dim, dim), or None."""
    factors: Leaf
    """(dim, rank), or None."""

    @property
    def dim(self) -> int:
        """How many numbers a draw has."""
        return self.mean.shape[0]

    @property
    def law(self) -> Any:
        """The Gaussian, with ``sample(key)`` and ``log_prob(x)``."""
        scale = jnp.exp(self.log_scale)
        if self.below is not None:
            return Gaussian(self.mean, Dense(jnp.tril(self.below, -1) + jnp.diag(scale)))
        if self.factors is not None:
            from numpyro.distributions import LowRankMultivariateNormal

            return LowRankMultivariateNormal(self.mean, self.factors, jnp.square(scale))
        return Gaussian(self.mean, Diagonal(scale))

    def sample(self, key: Key) -> Float[Array, " dim"]:
        """Draw."""
        return self.law.sample(key)

    def log_prob(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the log density, in nats."""
        return self.law.log_prob(x)

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Draw, and return the log density."""
        law = self.law
        x = law.sample(key)
        return x, law.log_prob(x)

    def standard_divergence(self) -> Float[Array, ""]:
        """Return KL(self || N(0, I)), in nats."""
        trace = jnp.sum(jnp.exp(2 * self.log_scale))
        half_log_det = jnp.sum(self.log_scale)
        if self.below is not None:
            trace = trace + jnp.sum(jnp.square(jnp.tril(self.below, -1)))
        elif self.factors is not None:
            white = self.factors * jnp.exp(-self.log_scale)[:, None]
            inner = jnp.eye(white.shape[1], dtype=white.dtype) + white.T @ white
            trace = trace + jnp.sum(jnp.square(self.factors))
            half_log_det = half_log_det + jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(inner))))
        square = jnp.sum(jnp.square(self.mean))
        return (trace + square - self.dim) / 2 - half_log_det


def mean_field(dim: int, *, mean: Any = 0.0, scale: Any = 1.0) -> GaussianFamily:
    r"""Gaussians of independent numbers, :math:`N(m, \mathrm{diag}(s)^2)`.

    Args:
      dim: how many numbers.
      mean: where to start.
      scale: standard deviations to start with.

    Returns:
      The family.

    Raises:
      ValueError: for a dimension below 1 and scales that are not positive.
    """
    return GaussianFamily(*_start(dim, mean, scale), None, None)


def full_rank(dim: int, *, mean: Any = 0.0, scale: Any = 1.0) -> GaussianFamily:
    r"""Gaussians with any covariance :math:`L L^T`, L lower triangular with a positive diagonal.

    See :func:`mean_field`.
    """
    return GaussianFamily(*_start(dim, mean, scale), jnp.zeros((dim, dim)), None)


def low_rank(
    key: Key, dim: int, rank: int, *, mean: Any = 0.0, scale: Any = 1.0, width: float = 0.01
) -> GaussianFamily:
    r"""Gaussians with covariance :math:`W W^T + \mathrm{diag}(s)^2`.

    Args:
      key: a typed key, of the factors that it starts from: zero ones would stay so.
      dim: how many numbers.
      rank: columns of W.
      mean: where to start.
      scale: s, to start with.
      width: of the factors that it starts from.

    Returns:
      The family.

    Raises:
      ValueError: for a rank that is not between 1 and the dimension.
    """
    if not 1 <= rank <= dim:
        raise ValueError(f"rank must lie between 1 and dim = {dim}, got {rank}.")
    factors = width * jax.random.normal(key, (dim, rank))
    return GaussianFamily(*_start(dim, mean, scale), None, factors)


def _start(dim: int, mean: Any, scale: Any) -> tuple[Array, Array]:
    """Return mean and log scales of a dimension."""
    check_least(dim=dim)
    check_positive("scale", scale)
    scale = jnp.broadcast_to(jnp.asarray(scale, float), (dim,))
    return jnp.broadcast_to(jnp.asarray(mean, float), (dim,)), jnp.log(scale)
