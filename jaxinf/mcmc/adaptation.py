"""Warm-up: the step size by dual averaging, the metric from the chains' own draws."""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinf.core import Covariance, Dense, Diagonal, record


class Moments(NamedTuple):
    """Count, mean and summed squares of draws about it."""

    count: Float[Array, ""]
    mean: Float[Array, " dim"]
    squares: Float[Array, "..."]
    """[dim] or [dim, dim]."""


@runtime_checkable
class Metric(Protocol):
    """How a metric is learned from draws."""

    def start(self, given: Covariance, z: Float[Array, " dim"]) -> Covariance:
        """Return a given metric in the learned one's form."""
        ...

    def none(self, z: Float[Array, " dim"]) -> Moments:
        """Return the moments of no draw."""
        ...

    def add(
        self,
        moments: Moments,
        z: Float[Array, "chains dim"],
        weights: Float[Array, " chains"] | None = None,
    ) -> Moments:
        """Return the moments with more draws, each of which counts as its weight, or once."""
        ...

    def pooled(self, moments: Moments, keep: Bool[Array, " chains"]) -> Moments:
        """Return the moments of the draws of some chains from those of each."""
        ...

    def covariance(self, moments: Moments) -> Covariance:
        """Return the metric."""
        ...


@record
class DiagonalMetric:
    """Variances alone; see :func:`diagonal`."""

    def start(self, given: Covariance, z: Float[Array, " dim"]) -> Covariance:
        """Return the variances of a given metric."""
        roots = jax.vmap(given.sqrt_transpose)(jnp.eye(z.size, dtype=z.dtype))
        return Diagonal(jnp.linalg.norm(roots, axis=1))

    def none(self, z: Float[Array, " dim"]) -> Moments:
        """Return the moments of no draw."""
        return Moments(jnp.zeros((), z.dtype), jnp.zeros_like(z), jnp.zeros_like(z))

    def add(
        self,
        moments: Moments,
        z: Float[Array, "chains dim"],
        weights: Float[Array, " chains"] | None = None,
    ) -> Moments:
        """Return the moments with more draws, each of which counts as its weight, or once."""
        return _add(moments, z, weights, lambda a: jnp.sum(jnp.square(a), axis=0))

    def pooled(self, moments: Moments, keep: Bool[Array, " chains"]) -> Moments:
        """Return the moments of the draws of some chains from those of each."""
        return _pooled(moments, keep, lambda a: jnp.sum(jnp.square(a), axis=0))

    def covariance(self, moments: Moments) -> Covariance:
        """Return the metric."""
        share, rest = _shrinkage(moments.count)
        return Diagonal(jnp.sqrt(share * moments.squares / (moments.count - 1) + rest))


@record
class DenseMetric:
    """The whole covariance; see :func:`dense`."""

    def start(self, given: Covariance, z: Float[Array, " dim"]) -> Covariance:
        """Return a given metric by its factor."""
        return Dense(jax.vmap(given.sqrt_transpose)(jnp.eye(z.size, dtype=z.dtype)))

    def none(self, z: Float[Array, " dim"]) -> Moments:
        """Return the moments of no draw."""
        squares = jnp.zeros((z.size, z.size), z.dtype)
        return Moments(jnp.zeros((), z.dtype), jnp.zeros_like(z), squares)

    def add(
        self,
        moments: Moments,
        z: Float[Array, "chains dim"],
        weights: Float[Array, " chains"] | None = None,
    ) -> Moments:
        """Return the moments with more draws, each of which counts as its weight, or once."""
        return _add(moments, z, weights, lambda a: a.T @ a)

    def pooled(self, moments: Moments, keep: Bool[Array, " chains"]) -> Moments:
        """Return the moments of the draws of some chains from those of each."""
        return _pooled(moments, keep, lambda a: a.T @ a)

    def covariance(self, moments: Moments) -> Covariance:
        """Return the metric."""
        share, rest = _shrinkage(moments.count)
        matrix = share * moments.squares / (moments.count - 1)
        # In units of the standard deviations, so that the factor is as exact for scales that
        # differ by many orders as for equal ones.
        scale = jnp.sqrt(jnp.diagonal(matrix) + rest)
        unit = matrix / (scale[:, None] * scale[None]) + jnp.diag(rest / jnp.square(scale))
        return Dense(scale[:, None] * jnp.linalg.cholesky(unit))


def diagonal() -> DiagonalMetric:
    r"""Learn the variances: :math:`\frac{n}{n+5} s^2 + 10^{-3} \frac{5}{n+5}` from n draws.

    Reference:
      Stan Reference Manual, "Automatic parameter tuning" (the shrinkage).
    """
    return DiagonalMetric()


def dense() -> DenseMetric:
    """Learn the whole covariance, shrunk as :func:`diagonal`'s; dim^2 numbers and operations."""
    return DenseMetric()


def _shrinkage(count: Array) -> tuple[Array, Array]:
    """Return the draws' share and what is added."""
    return count / (count + 5), 1e-3 * 5 / (count + 5)


def _add(moments: Moments, z: Array, weights: Array | None, square: Any) -> Moments:
    """Join the moments of a batch of draws with those of others."""
    weights = jnp.ones_like(z[:, 0]) if weights is None else weights
    more = jnp.sum(weights)
    mean = weights @ z / more
    count = moments.count + more
    apart = mean - moments.mean
    between = square(apart[None]) * moments.count * more / count
    squares = moments.squares + square(jnp.sqrt(weights)[:, None] * (z - mean[None])) + between
    return Moments(count, moments.mean + apart * more / count, squares)


def _pooled(moments: Moments, keep: Array, square: Any) -> Moments:
    """Join the moments of some chains, which have a leading axis."""
    counts = jnp.where(keep, moments.count, 0)
    count = jnp.sum(counts)
    mean = counts @ moments.mean / count
    between = square(jnp.sqrt(counts)[:, None] * (moments.mean - mean[None]))
    return Moments(
        count, mean, jnp.tensordot(keep.astype(mean.dtype), moments.squares, 1) + between
    )


class Steps(NamedTuple):
    """Dual averaging of the logarithm of the step size."""

    count: Float[Array, ""]
    error: Float[Array, ""]
    """The mean of goal minus acceptance."""
    log_step: Float[Array, ""]
    mean: Float[Array, ""]
    """The average of the iterates, for after warm-up."""
    centre: Float[Array, ""]


def steps_from(step_size: Array) -> Steps:
    """Start at a step size, and lean towards ten times as much."""
    log_step = jnp.log(step_size)
    zero = jnp.zeros_like(log_step)
    return Steps(zero, zero, log_step, zero, log_step + math.log(10))


def averaged(steps: Steps, acceptance: Array, goal: float) -> Steps:
    r"""Take one step of dual averaging.

    .. math:: \bar h \leftarrow \bar h + \frac{\delta - a - \bar h}{t + 10}, \quad
              x = \mu - 20 \sqrt t\, \bar h, \quad \bar x \leftarrow \bar x + t^{-3/4} (x - \bar x)

    Reference:
      M. Hoffman and A. Gelman, "The No-U-Turn Sampler", JMLR 2014, equation (6) and Algorithm 5.
    """
    t = steps.count + 1
    error = steps.error + (goal - acceptance - steps.error) / (t + 10)
    log_step = steps.centre - 20 * jnp.sqrt(t) * error
    mean = steps.mean + t**-0.75 * (log_step - steps.mean)
    return Steps(t, error, log_step, mean, steps.centre)


def windows(warmup: int) -> np.ndarray:
    """Return for each step of warm-up 0 (metric kept), 1 (draws gathered), 2 (metric renewed) or 3.

    At 3 chains are compared too, before the metric is renewed: in the first half of warm-up, from
    the third window on.

    The first 10 steps, at most 5 per cent, find the target; the last 50, at most 10 per cent, are
    the step size's alone. Between them lie windows of 15 steps and twice as many each time. The
    first are that early and short because a step costs up to a thousand gradients before scales
    are known and a few after, and because chains together need few steps for a rough covariance.
    """
    first, last = min(10, int(0.05 * warmup)), min(50, int(0.1 * warmup))
    marks = np.zeros(warmup, np.int32)
    start, size, stop = first, 15, warmup - last
    marks[start:stop] = 1
    while start < stop:
        end = start + size if start + 3 * size <= stop else stop
        marks[end - 1] = 3 if size >= 60 and end <= warmup // 2 else 2
        start, size = end, 2 * size
    return marks


def with_step(kernel: Any, log_step: Array) -> Any:
    """Return a kernel with another step size."""
    return dataclasses.replace(kernel, step_size=jnp.exp(log_step))


def first_step(kernel: Any, acceptance: Any) -> Any:
    """Double or halve a step size until the acceptance of one step crosses a half.

    Args:
      kernel: whose step size is the start.
      acceptance: of a kernel with another step size.
    """
    grow = acceptance(kernel) > 0.5

    def crossed(carry: tuple[Array, Array]) -> Array:
        count, log_step = carry
        above = acceptance(with_step(kernel, log_step)) > 0.5
        return (above == grow) & (count < 50)

    def move(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        count, log_step = carry
        return count + 1, log_step + jnp.where(grow, 1, -1) * math.log(2)

    start = jnp.log(jnp.asarray(kernel.step_size))
    _, log_step = jax.lax.while_loop(crossed, move, (jnp.zeros((), jnp.int32), start))
    return with_step(kernel, log_step)
