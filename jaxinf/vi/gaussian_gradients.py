"""Gradients of Gaussian expectations, and Gaussians whose precision is nearly diagonal."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Diagonal, Gaussian, Key, Leaf, record
from jaxinf.vi.checks import check_least, check_positive


class GaussianGradients(NamedTuple):
    """Estimates of a Gaussian expectation and of its gradients; see :func:`gaussian_gradients`."""

    value: Float[Array, ""]
    mean: Float[Array, " dim"]
    """Gradient in the mean."""
    covariance: Float[Array, "dim dim"] | Float[Array, " dim"]
    """In the covariance, symmetric; in the variances where the covariance is diagonal."""


def gaussian_gradients(
    key: Key, f: Callable[[Array], Any], law: Gaussian, draws: int = 1
) -> GaussianGradients:
    r"""A Gaussian expectation's gradients in mean and covariance, from f's own derivatives.

    .. math:: \nabla_\mu E_{N(\mu, C)}[f] = E[\nabla f], \qquad
              \nabla_C E_{N(\mu, C)}[f] = \tfrac12 E[\nabla^2 f]

    Bonnet's theorem and Price's. The second is the gradient that treats all entries of C as
    independent: along a symmetric dC, f's expectation changes by its inner product with dC.

    Args:
      key: a typed key.
      f: twice differentiable, of one vector (dim,) to one number.
      law: ``core.gaussian(mean, covariance)``.
      draws: over which all three are averaged.

    Returns:
      :class:`GaussianGradients`.

    Raises:
      ValueError: for fewer than one draw.

    Reference:
      D. J. Rezende, S. Mohamed and D. Wierstra, "Stochastic Backpropagation and Approximate
      Inference in Deep Generative Models" (2014), section 3.1 and appendix B.

    Example:
      ``vi.gaussian_gradients(key, f, core.gaussian(mean, core.Diagonal(scale)), draws=100)``
    """
    check_least(draws=draws)
    diagonal = isinstance(law.covariance, Diagonal)

    def one(key: Key) -> GaussianGradients:
        x = law.sample(key)
        value, slope = jax.value_and_grad(f)(x)
        curvature = jax.hessian(f)(x) / 2
        return GaussianGradients(value, slope, jnp.diagonal(curvature) if diagonal else curvature)

    found = jax.vmap(one)(jax.random.split(key, draws))
    return jax.tree.map(lambda a: jnp.mean(a, axis=0), found)


@record
class RankOne:
    r"""A Gaussian whose precision is a diagonal and an outer product; see :func:`rank_one`.

    As ``posterior`` of :func:`autoencoder` it takes what an encoder gives:
    ``(mean, log_precision, direction)``, each (latent,).
    """

    mean: Leaf
    log_precision: Leaf
    """Logarithms of D's diagonal."""
    direction: Leaf
    """u."""

    @property
    def dim(self) -> int:
        """How many numbers a draw has."""
        return self.mean.shape[0]

    @property
    def eta(self) -> Float[Array, ""]:
        r"""Return :math:`1 / (1 + u^T D^{-1} u)`, in (0, 1]."""
        inner = jnp.sum(jnp.square(self.direction) * jnp.exp(-self.log_precision))
        return 1 / (1 + inner)

    @property
    def log_det(self) -> Float[Array, ""]:
        """Return the logarithm of the covariance's determinant."""
        return jnp.log(self.eta) - jnp.sum(self.log_precision)

    def sample(self, key: Key) -> Float[Array, " dim"]:
        """Draw: the mean and R times white noise."""
        return self.mean + self.root(jax.random.normal(key, (self.dim,), self.mean.dtype))

    def root(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        r"""Return R z, with :math:`R R^T` the covariance; finite where u is zero, too."""
        white = jnp.exp(-self.log_precision / 2) * z
        # (1 - sqrt(eta)) / (u^T D^-1 u), without the zero below the line
        share = self.eta / (1 + jnp.sqrt(self.eta))
        side = jnp.exp(-self.log_precision) * self.direction
        return white - share * side * jnp.sum(self.direction * white)

    def log_prob(self, x: Float[Array, " dim"]) -> Float[Array, ""]:
        """Return the log density, in nats."""
        off = x - self.mean
        square = jnp.sum(jnp.exp(self.log_precision) * jnp.square(off))
        square = square + jnp.square(jnp.sum(self.direction * off))
        return -(square + self.log_det + self.dim * math.log(2 * math.pi)) / 2

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Draw, and return the log density."""
        x = self.sample(key)
        return x, self.log_prob(x)

    def standard_divergence(self) -> Float[Array, ""]:
        """Return KL(self || N(0, I)), in nats."""
        inverse = jnp.exp(-self.log_precision)
        trace = jnp.sum(inverse) - self.eta * jnp.sum(jnp.square(self.direction * inverse))
        return (trace + jnp.sum(jnp.square(self.mean)) - self.dim - self.log_det) / 2


def rank_one(dim: int, *, mean: Any = 0.0, precision: Any = 1.0, direction: Any = 0.01) -> RankOne:
    r"""Gaussians whose precision is a diagonal and an outer product.

    .. math:: C^{-1} = D + u u^T, \qquad \eta = \frac1{1 + u^T D^{-1} u}, \qquad
              \log |C| = \log \eta - \log |D|

    .. math:: C = R R^T, \qquad
              R = D^{-1/2} - \frac{1 - \sqrt\eta}{u^T D^{-1} u} D^{-1} u u^T D^{-1/2}

    Draws, densities and the divergence from N(0, I) take O(dim).

    Args:
      dim: how many numbers.
      mean: where to start, a number or (dim,).
      precision: D's diagonal to start with.
      direction: u to start with. The covariance is even in u, so that a fit that starts at zero
        has no slope there.

    Returns:
      The family.

    Raises:
      ValueError: for a dimension below 1 and precisions that are not positive.

    Reference:
      D. J. Rezende, S. Mohamed and D. Wierstra, "Stochastic Backpropagation and Approximate
      Inference in Deep Generative Models" (2014), section 4.3.

    Example:
      ``vi.approximate(key, posterior, vi.rank_one(posterior.dim))``
    """
    check_least(dim=dim)
    check_positive("precision", precision)
    spread = [jnp.broadcast_to(jnp.asarray(a, float), (dim,)) for a in (mean, precision, direction)]
    return RankOne(spread[0], jnp.log(spread[1]), spread[2])
