"""Gaussian steps with any mean: nonlinear kernels that a quadratic message guides exactly."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Gaussian, Key, PyTree, record, static
from jaxinf.core.triangular import triangular
from jaxinf.core.types import Leaf
from jaxinf.markov.linear_gaussian import (
    LinearGaussian,
    Quadratic,
    draw,
    law,
    matrix_of,
    tilt,
)


@record
class GaussianStep:
    """y = f(params, x) + root(params, x) z for white z."""

    params: Leaf
    mean: Callable[[Any, Array], Array] = static()
    root: Callable[[Any, Array], Array] = static()

    def at(self, x: Float[Array, " d"]) -> tuple[Array, Array]:
        """Return the mean of y given x, and a root of its covariance."""
        return self.mean(self.params, x), self.root(self.params, x)

    def sample(self, key: Key, x: Float[Array, " d"]) -> Float[Array, " m"]:
        """Draw y given x."""
        return draw(key, *self.at(x))

    def log_prob(self, x: Float[Array, " d"], y: Float[Array, " m"]) -> Float[Array, ""]:
        """Return log k(y | x), in nats; NaN where the noise has no density."""
        return law(*self.at(x)).log_prob(y)

    def tilt(self, x: Float[Array, " d"], message: Quadratic) -> tuple[Gaussian, Float[Array, ""]]:
        """Return the law proportional to k(y | x) h(y), and log (k h)(x): exact for any mean."""
        return tilt(*self.at(x), message)


def gaussian_step(
    mean: Callable[[Any, Float[Array, " d"]], Float[Array, " m"]],
    root: Callable[[Any, Float[Array, " d"]], Float[Array, "m k"]],
    params: PyTree = (),
) -> GaussianStep:
    """A kernel y ~ N(mean(params, x), root(params, x) root(params, x)').

    Args:
      mean: of (params, x), shape (m,). Give a function that stays, defined at the top of a file:
        a new one compiles anew.
      root: of (params, x), a root of the covariance, shape (m, k).
      params: what both take: numbers in it recompile nothing.

    Returns:
      A kernel with ``tilt``; ``markov.guide(kernel, markov.linearise(kernel, x))`` carries messages
      back.
    """
    return GaussianStep(params, mean, root)


def linearise(kernel: Any, x: Float[Array, " d"]) -> LinearGaussian:
    """The first-order Taylor expansion of a Gaussian step's mean, its noise kept from one point.

    Args:
      kernel: anything with ``at(x)``.
      x: where.

    Returns:
      An exact kernel that agrees with the step, and with the slope of its mean, at x.
    """
    mean, root = kernel.at(x)
    slope = jax.jacfwd(lambda x: kernel.at(x)[0])(x)
    return LinearGaussian(slope, mean - slope @ x, root)


def regress(kernel: Any, prior: Gaussian) -> LinearGaussian:
    r"""The linear-Gaussian kernel that is nearest to a step under a law of its start.

    Statistical linear regression with the third-degree spherical cubature,
    :math:`x_i = m \pm \sqrt d\, L e_i` with weights 1 / 2d (the unscented transform with kappa 0):

    .. math:: A = C_{yx} P^{-1}, \quad b = \bar y - A m, \quad
              Q = C_{yy} - A P A^\top + E[\text{noise}]

    Args:
      kernel: anything with ``at(x)``.
      prior: a Gaussian law of x.

    Returns:
      An exact kernel, equal to the step where the step is linear.

    Reference: Arasaratnam and Haykin, "Cubature Kalman Filters" (2009); Garcia-Fernandez, Svensson
    and Sarkka, "Iterated Posterior Linearization Smoother" (2017).
    """
    d = prior.mean.size
    factor = matrix_of(prior.covariance, d)
    arms = jnp.sqrt(d) * jnp.concatenate([factor.T, -factor.T])
    means, roots = jax.vmap(kernel.at)(prior.mean[None] + arms)
    mean = jnp.mean(means, axis=0)
    off = (means - mean[None]) / jnp.sqrt(2 * d)
    white = jnp.concatenate([jnp.eye(d), -jnp.eye(d)]).astype(off.dtype) / jnp.sqrt(2)
    slope_white = off.T @ white  # of y on white coordinates of x: A L
    residual = (off - white @ slope_white.T).T
    noise = jnp.moveaxis(roots, 0, 1).reshape(mean.size, -1) / jnp.sqrt(2 * d)
    solve = jax.scipy.linalg.solve_triangular
    matrix = solve(factor, slope_white.T, lower=True, trans=1).T
    root = triangular(jnp.concatenate([residual, noise], axis=1))
    return LinearGaussian(matrix, mean - matrix @ prior.mean, root)
