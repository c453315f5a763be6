"""A band that holds an empirical distribution function of uniform numbers as a whole."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class EcdfBand(NamedTuple):
    """Where an empirical distribution function lies; see :func:`ecdf_band`."""

    points: Float[np.ndarray, " points"]
    """i / (points + 1): where the function is looked at."""
    lower: Float[np.ndarray, " points"]
    upper: Float[np.ndarray, " points"]
    coverage: float
    """The exact probability that it lies within at all points."""


def ecdf_band(runs: int, points: int, level: float = 0.95) -> EcdfBand:
    r"""The simultaneous band of the empirical distribution function of uniform numbers.

    At each point z the number of N uniform ones below it is binomial; the band is between the
    quantiles :math:`\gamma/2` and :math:`1 - \gamma/2` of these, with the largest gamma for which
    all points together lie within with at least the level's probability. That probability is
    computed exactly along the chain of counts,

    .. math:: R(z_{i+1}) - R(z_i) \mid R(z_i) \sim
              \mathrm{Bin}\Big(N - R(z_i), \frac{z_{i+1} - z_i}{1 - z_i}\Big).

    Both edges belong to the band. It holds for ranks 0 to L of L draws at points = L, whose counts
    below i have exactly this law, and for :func:`tarp`. Computed on the host in float64.

    Args:
      runs: N, how many uniform numbers.
      points: how many points i / (points + 1).
      level: the probability, in (0, 1).

    Returns:
      :class:`EcdfBand`, as shares of the runs.

    Raises:
      ValueError: for a level outside (0, 1), and where there is no run or point.

    Reference:
      T. Säilynoja, P. Bürkner, A. Vehtari, "Graphical test for discrete uniformity and its
      applications in goodness-of-fit evaluation and multiple sample comparison", Statistics and
      Computing 2022; gamma by bisection.
    """
    if runs < 1 or points < 1:
        raise ValueError(f"runs and points must be at least 1, got {runs} and {points}.")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}; 0.95 is usual.")
    z = np.arange(1, points + 1) / (points + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, runs + 1)))])
    counts = np.arange(runs + 1)[None]
    law = _log_binomial(factorials, runs, counts, z[:, None])
    below = np.cumsum(np.exp(law), axis=1)

    def at(tail: float) -> tuple[np.ndarray, np.ndarray, float]:
        lower = np.sum(below < tail, axis=1)
        upper = np.sum(below < 1 - tail, axis=1).clip(max=runs)
        return lower, upper, _inside(factorials, z, lower, upper)

    # The union bound holds the level; half of what is outside at one point alone does not.
    narrow, wide = np.log((1 - level) / 2), np.log((1 - level) / (2 * points) / 1.01)
    for _ in range(30):
        middle = (narrow + wide) / 2
        narrow, wide = (narrow, middle) if at(np.exp(middle))[2] >= level else (middle, wide)
    lower, upper, coverage = at(np.exp(wide))
    return EcdfBand(z, lower / runs, upper / runs, coverage)


def _log_binomial(
    factorials: np.ndarray, n: np.ndarray | int, k: np.ndarray, p: np.ndarray
) -> np.ndarray:
    """Return the log of the binomial law's mass, from a table of log factorials."""
    rest = n - k
    ways = factorials[n] - factorials[k] - factorials[rest]
    return ways + k * np.log(p) + rest * np.log1p(-p)


def _inside(factorials: np.ndarray, z: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """Return the probability that the counts stay between two edges at all points."""
    runs = len(factorials) - 1
    counts, mass, before = np.zeros(1, int), np.ones(1), 0.0
    for point, least, most in zip(z, lower, upper, strict=True):
        new = np.arange(least, most + 1)
        more = new[None] - counts[:, None]
        left = (runs - counts)[:, None]
        possible = (more >= 0) & (more <= left)
        share = np.full((1, 1), (point - before) / (1 - before))
        law = _log_binomial(factorials, left, np.where(possible, more, 0), share)
        mass = mass @ np.where(possible, np.exp(law), 0)
        counts, before = new, point
    return float(mass.sum())
