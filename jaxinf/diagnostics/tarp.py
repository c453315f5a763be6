"""Coverage of a posterior's regions about random points."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, check_key
from jaxinf.diagnostics.kolmogorov_smirnov import kolmogorov_smirnov
from jaxinf.diagnostics.samples import check_runs, in_ranks


class Coverage(NamedTuple):
    """How often regions hold what they should; see :func:`tarp`."""

    shares: Float[Array, " runs"]
    """f, of every run."""
    credibility: Float[Array, " points"]
    """alpha = i / (points + 1)."""
    coverage: Float[Array, " points"]
    """The share of runs with f < alpha, to lie in ``ecdf_band(runs, points)``."""
    p_value: Float[Array, ""]
    """Of the shares against the uniform law, by Kolmogorov and Smirnov."""


def tarp(
    key: Key,
    truth: Float[Array, "runs ..."],
    draws: Float[Array, "runs draws ..."],
    references: Float[Array, "runs ..."],
    *,
    points: int = 49,
) -> Coverage:
    r"""Tests of accuracy with random points: does a region hold the truth as often as it claims?

    For a reference point :math:`\theta_{r}` of every run, the region of credibility alpha is the
    ball about it with the share alpha of the posterior's draws, and it holds the truth if

    .. math:: f_i = \frac1L \#\{l : d(\theta_{il}, \theta_{ri}) < d(\theta_i, \theta_{ri})\}
              < \alpha, \qquad \mathrm{ECP}(\alpha) = P(f < \alpha).

    The posterior is exact if and only if ECP(alpha) = alpha for references that may depend on the
    data in any way. References that do not know the data cannot tell the posterior from the prior.
    Here f is the rank, ties broken by chance and a uniform number added, over L + 1: uniform on
    [0, 1] for an exact posterior at any number of draws. The distance is Euclidean: bring
    parameters of different units to one scale before.

    Args:
      key: for ties, and for the numbers within a rank.
      truth: a true value for every run.
      draws: from the posterior of every run, independent: thin chains until they are.
      references: a point for every run, from any law that may depend on the run's data but not on
        its true value.
      points: how many credibilities.

    Returns:
      :class:`Coverage`.

    Raises:
      ValueError: for shapes that do not fit, fewer than two runs, and what is not finite.

    Reference:
      P. Lemos, A. Coogan, Y. Hezaveh, L. Perreault-Levasseur, "Sampling-Based Accuracy Testing of
      Posterior Estimators for General Inference", ICML 2023.
    """
    check_key(key)
    check_runs(truth, draws)
    if references.shape != truth.shape:
        raise ValueError(
            f"references must have the shape of truth, {truth.shape}, a point for every run, got "
            f"{references.shape}; jnp.broadcast_to repeats one."
        )
    if points < 1:
        raise ValueError(f"points must be at least 1, got {points}.")
    apart = jnp.concatenate([truth[:, None], draws], axis=1) - references[:, None]
    squares = jnp.sum(jnp.square(apart), axis=tuple(range(2, apart.ndim)))
    of_truth, of_draws = squares[:, :1], squares[:, 1:]
    key_ties, key_within = jax.random.split(key)
    ties = jnp.sum(of_draws == of_truth, axis=1)
    ranks = in_ranks(key_ties, jnp.sum(of_draws < of_truth, axis=1), ties)
    within = jax.random.uniform(key_within, ranks.shape, truth.dtype)
    shares = (ranks + within) / (draws.shape[1] + 1)
    credibility = jnp.arange(1, points + 1, dtype=truth.dtype) / (points + 1)
    coverage = jnp.mean(shares[None] < credibility[:, None], axis=1, dtype=truth.dtype)
    return Coverage(shares, credibility, coverage, kolmogorov_smirnov(shares))
