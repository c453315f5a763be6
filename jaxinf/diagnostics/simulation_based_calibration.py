"""Simulation-based calibration: ranks of true parameters among posterior draws."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinf.core import Key, check_key
from jaxinf.diagnostics.kolmogorov_smirnov import kolmogorov_smirnov
from jaxinf.diagnostics.samples import check_runs, in_ranks


class Calibration(NamedTuple):
    """What ranks say of a posterior; see :func:`simulation_based_calibration`."""

    ranks: Int[Array, "runs *event"]
    """How many of a run's L draws are below its true value, 0 to L."""
    uniform: Float[Array, "runs *event"]
    """(rank + U) / (L + 1), uniform on [0, 1] under the null: what ``az.plot_ecdf_pit`` takes."""
    counts: Int[Array, "bins *event"]
    """The histogram of the ranks."""
    expected: Float[Array, " bins"]
    """What the histogram's bars are in the mean; they differ where bins do not divide L + 1."""
    ecdf: Float[Array, "draws *event"]
    """Share of ranks below 1, ..., L, to lie in ``ecdf_band(runs, L)``."""
    chi_square: Float[Array, "*event"]
    """p-value of the counts."""
    kolmogorov_smirnov: Float[Array, "*event"]
    """p-value of the numbers ``uniform``."""


def simulation_based_calibration(
    key: Key,
    truth: Float[Array, "runs ..."],
    draws: Float[Array, "runs draws ..."],
    *,
    thin: int = 1,
    bins: int = 20,
) -> Calibration:
    r"""Whether posteriors of simulated data know the parameters that these were simulated from.

    With :math:`\theta_i \sim p(\theta)`, :math:`y_i \sim p(y \mid \theta_i)` and L draws
    :math:`\theta_{il} \sim p(\theta \mid y_i)` the ranks

    .. math:: r_i = \#\{l : \theta_{il} < \theta_i\}

    are uniform on {0, ..., L}. They pile up at both ends where the posterior is too narrow, in the
    middle where it is too wide, on one side where it is shifted. Draws equal to the true value are
    placed below it or above by chance, which keeps ranks of discrete laws uniform. The test is of
    draws that are independent: thin chains until they are.

    Args:
      key: for ties, and for the numbers within a rank.
      truth: a true value for every run; the prior's own draws.
      draws: from the posterior of every run.
      thin: of every so many draws the last is kept.
      bins: of the histogram and the chi-square test, at most L + 1.

    Returns:
      :class:`Calibration`, of each number of an event by itself.

    Raises:
      ValueError: for shapes that do not fit, fewer than two runs, numbers that are not finite, and
        for bins that are more than the ranks or would hold fewer than one run each.

    Reference:
      S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman, "Validating Bayesian Inference
      Algorithms with Simulation-Based Calibration", 2018.
    """
    check_key(key)
    if thin < 1:
        raise ValueError(f"thin must be at least 1, got {thin}; 1 keeps every draw.")
    draws = draws[:, thin - 1 :: thin] if draws.ndim > 1 else draws
    check_runs(truth, draws)
    runs, size = draws.shape[:2]
    if not 2 <= bins <= min(size + 1, runs):
        raise ValueError(
            f"bins must lie between 2 and the {size + 1} ranks of {size} draws, and runs "
            f"({runs}) must not be fewer, got {bins}. Pass a smaller bins, or thin less."
        )
    key_ties, key_within = jax.random.split(key)
    below = jnp.sum(draws < truth[:, None], axis=1)
    ranks = in_ranks(key_ties, below, jnp.sum(draws == truth[:, None], axis=1))
    within = jax.random.uniform(key_within, truth.shape, truth.dtype)
    uniform = (ranks + within) / (size + 1)
    counts, expected, p_value = _histogram(ranks, size + 1, bins, uniform.dtype)
    at = jnp.arange(1, size + 1)
    ecdf = jax.lax.map(lambda i: jnp.mean(ranks < i, axis=0, dtype=uniform.dtype), at)
    smirnov = kolmogorov_smirnov(uniform)
    return Calibration(ranks, uniform, counts, expected, ecdf, p_value, smirnov)


def _histogram(ranks: Array, values: int, bins: int, dtype: Any) -> tuple[Array, Array, Array]:
    """Return counts of ranks in bins as even as can be, what they expect, and a p-value."""
    place = np.arange(values) * bins // values
    expected = jnp.asarray(np.bincount(place) * len(ranks) / values, dtype)
    each = jnp.arange(bins).reshape(-1, *[1] * ranks.ndim)
    counts = jnp.sum(jnp.asarray(place)[ranks][None] == each, axis=1)
    wide = expected.reshape(-1, *[1] * (ranks.ndim - 1))
    distance = jnp.sum(jnp.square(counts - wide) / wide, axis=0)
    return counts, expected, jax.scipy.special.gammaincc((bins - 1) / 2, distance / 2)
