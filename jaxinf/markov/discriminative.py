"""Observations known by what they say of the state: the discriminative Kalman filter."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Gaussian, PyTree, record, static
from jaxinf.core.types import Leaf
from jaxinf.markov.linear_gaussian import LOG_2PI, Quadratic


@record
class Discriminative:
    """The likelihood p(z | y) / p(z), up to p(y), of a learned Gaussian p(z | y)."""

    params: Leaf
    stationary: Leaf
    mean: Callable[[Any, PyTree], Array] = static()
    covariance: Callable[[Any, PyTree], Array] = static()

    def likelihood(self, y: PyTree) -> Quadratic:
        """Return the message z -> log p(z | y) - log p(z)."""
        mean, covariance = self.mean(self.params, y), self.covariance(self.params, y)
        told = _message(mean, covariance)
        d = mean.size
        known = _message(self.stationary.mean, self.stationary.covariance.dense(d))
        ratio = jax.tree.map(jnp.subtract, told, known)
        # where less is known of the state with y than without, the ratio is no density's: the prior
        # is then not divided out, as the paper's robust form has it
        proper = jnp.linalg.eigvalsh(ratio.precision)[0] > 0
        return jax.tree.map(lambda a, b: jnp.where(proper, a, b), ratio, told)

    def observe(self, prior: Gaussian, y: PyTree) -> tuple[Any, Float[Array, ""]]:
        """Return the law of z given y, and the log density of y over its own marginal."""
        return self.likelihood(y).weigh(prior)


def _message(mean: Array, covariance: Array) -> Quadratic:
    """Return the message z -> log N(z; mean, covariance)."""
    factor = jnp.linalg.cholesky(covariance)
    d = mean.size
    white = jax.scipy.linalg.solve_triangular(factor, jnp.eye(d, dtype=mean.dtype), lower=True)
    shift = white @ mean
    constant = -jnp.sum(jnp.log(jnp.diagonal(factor))) - (d * LOG_2PI + shift @ shift) / 2
    return Quadratic(constant, white.T @ shift, white.T @ white)


def discriminative(
    mean: Callable[[Any, PyTree], Float[Array, " d"]],
    covariance: Callable[[Any, PyTree], Float[Array, "d d"]],
    stationary: Gaussian,
    params: PyTree = (),
) -> Discriminative:
    r"""An emission given by a regression of the state on what is seen.

    With p(z | y) = N(f(y), Q(y)) and the stationary law N(mu, S) of the state, the filter's update
    of a prediction N(m, M) is

    .. math:: P' = (Q(y)^{-1} + M^{-1} - S^{-1})^{-1}, \qquad
              m' = P' (Q(y)^{-1} f(y) + M^{-1} m - S^{-1} \mu)

    and where :math:`Q(y)^{-1} - S^{-1}` is not positive definite, S is left out of both. With the
    exact p(z | y) of a linear-Gaussian emission it is Kalman's filter, and the evidence is that of
    the observations over the product of their marginals.

    Args:
      mean: f, of (params, y), shape (d,): a regression, learned on pairs of state and observation.
      covariance: Q, of (params, y), shape (d, d), positive definite.
      stationary: the law of a state by itself, as the pairs were drawn.
      params: what both take: numbers in it recompile nothing.

    Returns:
      An emission for :func:`state_space`; :func:`filter` and :func:`smooth` take it.

    Reference: Burkhart, Brandman, Franco, Hochberg and Harrison, "The Discriminative Kalman Filter
    for Bayesian Filtering with Nonlinear and Nongaussian Observation Models" (2020); Burkhart, "A
    Discriminative Approach to Bayesian Filtering with Applications to Human Neural Decoding"
    (2019).
    """
    return Discriminative(params, stationary, mean, covariance)
