"""Gaussian laws and mixtures of them: the exact instances by which everything else is checked."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core.covariance import Covariance, Dense, Diagonal, Full, add
from jaxinf.core.record import record
from jaxinf.core.types import Key, Leaf, Scalar


@record
class Gaussian:
    """N(mean, C) on examples of the mean's shape, with C = L L^T held by L."""

    mean: Leaf
    covariance: Leaf

    def sample(self, key: Key) -> Array:
        """Draw one example: mean + L z."""
        z = jax.random.normal(key, jnp.shape(self.mean), jnp.result_type(self.mean, float))
        return self.mean + self.covariance.sqrt(z)

    def log_prob(self, x: Array) -> Float[Array, ""]:
        """Log density at one example, in nats."""
        return log_prob(self.covariance, x - self.mean)

    def noised(self, alpha: Scalar, noise: Diagonal | Dense | Full) -> "Gaussian":
        """Return the law of alpha x + e for e ~ N(0, noise) independent of x."""
        covariance = add(self.covariance.scaled(alpha), noise, jnp.size(self.mean))
        return Gaussian(alpha * self.mean, covariance)

    def posterior_mean(self, y: Array, alpha: Scalar, noise: Diagonal | Dense | Full) -> Array:
        """Return E[x | alpha x + e = y] for e ~ N(0, noise): m + alpha C M^-1 (y - alpha m)."""
        marginal = self.noised(alpha, noise)
        gain = marginal.covariance.precision(y - marginal.mean)
        return self.mean + alpha * self.covariance.matvec(gain)


@record
class Mixture:
    """A mixture of Gaussians: ``components`` is a Gaussian whose leaves have a leading axis K."""

    log_weights: Leaf
    components: Leaf

    def sample(self, key: Key) -> Array:
        """Draw one example: a component by its weight, then from it."""
        choice, draw = jax.random.split(key)
        k = jax.random.categorical(choice, self.log_weights)
        return jax.tree.map(lambda leaf: leaf[k], self.components).sample(draw)

    def log_prob(self, x: Array) -> Float[Array, ""]:
        """Log density at one example, in nats."""
        return jax.nn.logsumexp(self._joint(x))

    def noised(self, alpha: Scalar, noise: Diagonal | Dense | Full) -> "Mixture":
        """Return the law of alpha x + e for e ~ N(0, noise) independent of x."""
        components = jax.vmap(lambda component: component.noised(alpha, noise))(self.components)
        return Mixture(self.log_weights, components)

    def posterior_mean(self, y: Array, alpha: Scalar, noise: Diagonal | Dense | Full) -> Array:
        """Return E[x | alpha x + e = y]: the components' means by their responsibilities."""
        responsibilities = jax.nn.softmax(self.noised(alpha, noise)._joint(y))
        means = jax.vmap(lambda component: component.posterior_mean(y, alpha, noise))(
            self.components
        )
        return jnp.tensordot(responsibilities, means, 1)

    def _joint(self, x: Array) -> Float[Array, " k"]:
        log_weights = jax.nn.log_softmax(jnp.asarray(self.log_weights))
        return log_weights + jax.vmap(lambda component: component.log_prob(x))(self.components)


def log_prob(covariance: Covariance, x: Array) -> Float[Array, ""]:
    """Log density of N(0, C) at one example x, in nats."""
    z = covariance.whiten(x)
    return (
        -0.5 * jnp.sum(jnp.square(z))
        - covariance.log_det_sqrt(x.size)
        - 0.5 * x.size * math.log(2 * math.pi)
    )


def gaussian(mean: Float[Array, " d"], covariance: Diagonal | Dense | Full) -> Gaussian:
    """A Gaussian law.

    Args:
      mean: shape (d,).
      covariance: ``core.dense(matrix)``, ``core.full(matrix)`` or
        ``core.Diagonal(standard_deviations)``.

    Returns:
      The law, with ``sample(key)`` and ``log_prob(x)``.
    """
    return Gaussian(jnp.asarray(mean), covariance)


def mixture(
    weights: Float[Array, " k"],
    means: Float[Array, "k d"],
    standard_deviations: Float[Array, " k"] | Float[Array, "k d"],
) -> Mixture:
    """A mixture of Gaussians with isotropic or diagonal components.

    Args:
      weights: shape (k,), positive; normalised here.
      means: shape (k, d).
      standard_deviations: shape (k,) or (k, d), in the units of the means; zero for atoms.

    Returns:
      The law, with ``sample(key)`` and ``log_prob(x)``. Components with full covariances are
      ``Mixture(log_weights, Gaussian(means, Dense(factors)))`` with a leading axis k.

    Raises:
      ValueError: for weights that are not positive, where they are concrete.
    """
    weights = jnp.asarray(weights)
    if not isinstance(weights, jax.core.Tracer) and not bool(jnp.all(weights > 0)):
        raise ValueError(f"mixture weights must be positive, got {weights}; drop empty components")
    components = Gaussian(jnp.asarray(means), Diagonal(jnp.asarray(standard_deviations)))
    return Mixture(jnp.log(weights / jnp.sum(weights)), components)
