"""Events and rounded observations: a function of the example that lies within bounds."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Leaf, is_concrete, record, root, static
from jaxinf.guide.belief import Belief
from jaxinf.guide.likelihood import Tilt, at_a_point, both_ways


@record
class Interval:
    """low < c(params, x_0) + noise e < high; see :func:`interval`."""

    params: Leaf
    low: Leaf
    high: Leaf
    noise: Leaf
    function: Callable[[Any, Array], Array] = static()

    @property
    def narrows(self) -> bool:
        """No: an event that cuts one tail leaves the other as wide as the belief's.

        Proposals of the cut law's smaller variance would have weights of infinite variance there.
        """
        return False

    def log_prob(self, x: Array) -> Float[Array, ""]:
        """Return the log probability of the event given x; 0 or -inf without noise."""
        return jnp.sum(_between(self.function(self.params, x), self.low, self.high, self.noise))

    def tilt(self, belief: Belief) -> Tilt:
        """Return the log probability of the event for N(c(m), noise^2 + H V H^T), and d / dm."""
        mean, covariance, solve = belief
        if covariance is None:
            return at_a_point(self, mean)
        value, forward, back = both_ways(lambda x: self.function(self.params, x), mean)
        spread = solve.diagonal(lambda v: forward(covariance(back(v))), value)
        scale = jax.lax.stop_gradient(root(jnp.square(self.noise) + spread))

        def log_evidence(value: Array) -> Array:
            return jnp.sum(_between(value, self.low, self.high, scale))

        found, gradient = jax.value_and_grad(log_evidence)(value)
        return Tilt(found, back(gradient))


def _between(value: Array, low: Array, high: Array, scale: Array) -> Array:
    """Log probability that N(value, scale^2) lies in (low, high), to full relative precision."""
    sure = jnp.where((value > low) & (value < high), 0.0, -jnp.inf)
    positive = scale > 0
    by = jnp.where(positive, scale, 1.0)
    a, b = (low - value) / by, (high - value) / by
    # in the tail where both are negative: Phi(b) - Phi(a) = Phi(-a) - Phi(-b)
    a, b = jnp.where(a > 0, -b, a), jnp.where(a > 0, -a, b)
    upper = log_ndtr(b)
    gap = log_ndtr(jnp.where(jnp.isfinite(a), a, 0)) - upper
    below = jnp.where(jnp.isfinite(a), jnp.log(-jnp.expm1(jnp.minimum(gap, -1e-30))), 0.0)
    return jnp.where(positive, upper + below, sure)


def interval(
    function: Callable[[Any, Array], Array],
    low: Any,
    high: Any,
    *,
    noise: Any = 0.0,
    params: PyTree = (),
) -> Interval:
    r"""A user's event, or an observation that was rounded.

    .. math:: p(E \mid x_0) = \prod_i P(l_i < c_i(x_0) + \sigma_i e_i < h_i), \quad
              p(E \mid x_t) \approx \prod_i \Phi(b_i) - \Phi(a_i)

    with (a, b) = (l - c(m), h - c(m)) / sqrt(sigma^2 + H V H^T) and N(m, V) what is believed of
    x_0: exact for one linear c. Several are taken as independent given x_t.

    Args:
      function: c, ``(params, x_0) -> `` numbers, differentiable; define it at the top of a file.
      low: l, a number or an array of c's shape; ``-jnp.inf`` for none.
      high: h, in the same way; an inequality has one of the two.
      noise: sigma, not negative; 0 makes the event certain given x_0. For a network take a few
        hundredths of c's scale: near time 0 its derivative may leave no spread, and an exact bound
        then rules out particles that could still meet it, so that the evidence comes out low.
      params: what the function takes.

    Returns:
      The likelihood. An equality c = y is ``guide.observed(lambda p, x: dist.Normal(c(x), s), y)``
      with a small s; what was rounded to steps of size d is ``interval(A, y - d / 2, y + d / 2,
      noise=s)``.

    Raises:
      ValueError: for an interval that is empty, or a negative noise.

    Reference:
      User-defined Event Sampling and Uncertainty Quantification in Diffusion Models for Physical
      Dynamical Systems, Finzi et al., 2023.
    """
    if is_concrete((low, high)) and not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(
            f"an interval must have low < high, got low={low} and high={high}; an equality is "
            "guide.observed with a narrow law"
        )
    if is_concrete(noise) and not np.all(np.asarray(noise) >= 0):
        raise ValueError(f"noise must not be negative, got {noise}; 0 is an exact event")
    low, high, noise = (jnp.asarray(value, float) for value in (low, high, noise))
    return Interval(params, low, high, noise, function)
