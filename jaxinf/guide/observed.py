"""Observations of any law: nonlinear, Poisson, ..., as NumPyro distributions."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Leaf, record, static
from jaxinf.guide.belief import Belief
from jaxinf.guide.likelihood import Tilt, at_a_point, both_ways


@record
class Observed:
    """y ~ law(params, x_0); see :func:`observed`."""

    params: Leaf
    y: Leaf
    law: Callable[[Any, Array], Any] = static()

    def log_prob(self, x: Array) -> Float[Array, ""]:
        """Return the law's log density or mass at y, summed."""
        return jnp.sum(self.law(self.params, x).log_prob(self.y))

    def residual(self, x: Array) -> Array:
        """Return y less the law's mean."""
        return self.y - self.law(self.params, x).mean

    def tilt(self, belief: Belief) -> Tilt:
        """Return the tilt by the Gaussian that has the law's mean and variance, made linear at m.

        log N(y; mu(m), v(m) + H V H^T) with H = d mu / dm, and H^T (...)^-1 (y - mu(m)).
        """
        mean, covariance, solve = belief
        if covariance is None:
            return at_a_point(self, mean)
        mu, forward, back = both_ways(lambda x: self.law(self.params, x).mean, mean)
        variance = self.law(self.params, mean).variance
        scale = jnp.sqrt(jnp.broadcast_to(variance, mu.shape))
        r = (self.y - mu) / scale

        def m(v: Array) -> Array:
            return forward(covariance(back(v / scale))) / scale

        w, log_det = solve.solve(m, r)
        total = jnp.sum(jnp.log(scale)) + 0.5 * r.size * jnp.log(2 * jnp.pi)
        return Tilt(-0.5 * (jnp.vdot(r, w) + log_det) - total, back(w / scale))


def observed(law: Callable[[Any, Array], Any], y: Any, params: PyTree = ()) -> Observed:
    r"""An observation of any law: a nonlinear map with noise, counts, heavy tails.

    .. math:: y \sim \mathrm{law}(\theta, x_0), \quad
              p(y \mid x_t) \approx N\bigl(y; \mu(m), v(m) + H V H^\top\bigr)

    with mu and v the law's mean and variance, H the derivative of mu at m, and N(m, V) what is
    believed of x_0. The density itself is used where the belief is a point and for final weights.

    Args:
      law: ``(params, x_0) -> `` a NumPyro distribution over y with mean and variance,
        ``lambda rate, x: dist.Poisson(rate * jnp.exp(x))`` say; its log densities are summed.
        Define it at the top of a file: a new function compiles anew.
      y: what was observed.
      params: what the law takes; numbers in it recompile nothing.

    Returns:
      The likelihood.
    """
    return Observed(params, jnp.asarray(y), law)
