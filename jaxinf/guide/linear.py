"""Linear-Gaussian observations, the ones that tilt a Gaussian belief exactly."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Leaf, is_concrete, record
from jaxinf.guide.belief import Belief
from jaxinf.guide.likelihood import Tilt, at_a_point
from jaxinf.guide.operators import Operator


@record
class Linear:
    """y = A x_0 + noise e, with e white; see :func:`linear`."""

    operator: Leaf
    y: Leaf
    noise: Leaf

    def log_prob(self, x: Array) -> Float[Array, ""]:
        """Return log N(y; A x, noise^2), over what was observed."""
        r = (self.y - self.operator(x)) / self.noise
        return -0.5 * jnp.sum(jnp.square(r)) - self._log_scale()

    def residual(self, x: Array) -> Array:
        """Return y - A x, 0 where nothing was seen."""
        return jnp.where(jnp.isfinite(self.noise), self.y - self.operator(x), 0)

    def tilt(self, belief: Belief) -> Tilt:
        """Return log N(y; A m, noise^2 + A V A^T) and its gradient A^T (...)^-1 (y - A m)."""
        mean, covariance, solve = belief
        if covariance is None:
            return at_a_point(self, mean)
        # in units of the noise, so that what was not observed has the equation 1 w = 0
        r = (self.y - self.operator(mean)) / self.noise

        def m(v: Array) -> Array:
            return self.operator(covariance(self._back(v, mean))) / self.noise

        w, log_det = solve.solve(m, r)
        log_evidence = -0.5 * (jnp.vdot(r, w) + log_det) - self._log_scale()
        return Tilt(log_evidence, self._back(w, mean))

    def _back(self, v: Array, like: Array) -> Array:
        return self.operator.adjoint(v / self.noise, like)

    def _log_scale(self) -> Array:
        """Logarithm of the product of sqrt(2 pi) noise over what was observed."""
        noise = jnp.broadcast_to(self.noise, jnp.shape(self.y))
        seen = jnp.isfinite(noise)
        scale = jnp.log(jnp.where(seen, noise, 1)) + 0.5 * math.log(2 * math.pi)
        return jnp.sum(jnp.where(seen, scale, 0))


def linear(operator: Operator, y: Any, noise: Any) -> Linear:
    r"""A linear-Gaussian observation.

    .. math:: p(y \mid x_0) = N(y; A x_0, \mathrm{diag}(\sigma^2))

    Args:
      operator: A: ``guide.mask``, ``blur``, ``downsample``, ``projection``, ``fourier``,
        ``guide.operator(apply, params, shape)`` of one's own.
      y: what was observed, of the shape of A x.
      noise: sigma, standard deviation: a number or of y's shape; infinite where nothing was seen.

    Returns:
      The likelihood, a pytree of its numbers.

    Raises:
      ValueError: for a noise that is not positive: exact observations have no density.
    """
    if is_concrete(noise) and not np.all(np.asarray(noise) > 0):
        raise ValueError(
            f"noise is a standard deviation and must be positive, got {noise}; an exact "
            "observation is a small one, 1e-2 of the data's scale say"
        )
    return Linear(operator, jnp.asarray(y, float), jnp.asarray(noise, float))
