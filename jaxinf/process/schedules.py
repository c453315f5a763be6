"""Schedules: x_t = alpha(t) x_0 + sigma(t) e, given by alpha and sigma alone.

Time runs from data at 0 to noise at ``t_max``; ``t_min`` is the earliest time at which the marginal
has a density and every rate is finite. Samplers may step on to 0 itself.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxinf.core import Leaf, Scalar, record, static


@runtime_checkable
class Schedule(Protocol):
    """A signal scale and a noise scale as functions of time, and the range of times."""

    @property
    def t_min(self) -> Leaf:
        """Earliest time at which the marginal has a density."""
        ...

    @property
    def t_max(self) -> Leaf:
        """Latest time."""
        ...

    def alpha(self, t: Scalar) -> Array:
        """Scale of the data."""
        ...

    def sigma(self, t: Scalar) -> Array:
        """Scale of the noise."""
        ...


@record
class Cosine:
    """Variance preserving along a quarter circle: (cos, sin)(pi t / 2)."""

    t_min: Leaf
    t_max: Leaf

    def alpha(self, t: Scalar) -> Array:
        """Return cos(pi t / 2), written so that it is exactly 0 at t = 1."""
        return jnp.sin(0.5 * math.pi * (1 - jnp.asarray(t)))

    def sigma(self, t: Scalar) -> Array:
        """Return sin(pi t / 2)."""
        return jnp.sin(0.5 * math.pi * jnp.asarray(t))


@record
class LinearBeta:
    """Variance preserving with beta(t) = beta_min + t (beta_max - beta_min)."""

    beta_min: Leaf
    beta_max: Leaf
    t_min: Leaf
    t_max: Leaf

    def alpha(self, t: Scalar) -> Array:
        """Return exp(-B(t) / 2) for B the integral of beta."""
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: Scalar) -> Array:
        """Return sqrt(1 - exp(-B(t)))."""
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def _integral(self, t: Scalar) -> Array:
        t = jnp.asarray(t)
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * jnp.square(t)


@record
class Betas:
    """Variance preserving through a table of T steps, at t = k / T; log alpha is linear between."""

    integral: Leaf  # B_k = -sum_{i<=k} log(1 - beta_i), shape (T + 1,)
    t_min: Leaf
    t_max: Leaf

    def alpha(self, t: Scalar) -> Array:
        """Return exp(-B(t) / 2)."""
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: Scalar) -> Array:
        """Return sqrt(1 - exp(-B(t)))."""
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def _integral(self, t: Scalar) -> Array:
        t = jnp.asarray(t)
        grid = jnp.linspace(0.0, 1.0, self.integral.shape[0], dtype=t.dtype)
        return jnp.interp(t, grid, jnp.asarray(self.integral, t.dtype))


@record
class VarianceExploding:
    """alpha = 1, sigma(t)^2 = sigma_min^2 ((sigma_max / sigma_min)^(2 t) - 1)."""

    sigma_min: Leaf
    sigma_max: Leaf
    t_min: Leaf
    t_max: Leaf

    def alpha(self, t: Scalar) -> Array:
        """Return 1."""
        return jnp.ones_like(jnp.asarray(t))

    def sigma(self, t: Scalar) -> Array:
        """Return the scale of the noise that has been added since t = 0."""
        ratio = jnp.log(self.sigma_max / self.sigma_min)
        return self.sigma_min * jnp.sqrt(jnp.expm1(2 * ratio * jnp.asarray(t)))


@record
class EDM:
    """alpha = 1, sigma(t) = t."""

    t_min: Leaf
    t_max: Leaf

    def alpha(self, t: Scalar) -> Array:
        """Return 1."""
        return jnp.ones_like(jnp.asarray(t))

    def sigma(self, t: Scalar) -> Array:
        """Return t."""
        return jnp.asarray(t)


@record
class LinearInterpolation:
    """alpha = 1 - t, sigma = t: the straight path of flow matching, data at 0."""

    t_min: Leaf
    t_max: Leaf

    def alpha(self, t: Scalar) -> Array:
        """Return 1 - t."""
        return 1 - jnp.asarray(t)

    def sigma(self, t: Scalar) -> Array:
        """Return t."""
        return jnp.asarray(t)


@record
class Custom:
    """A schedule from two functions of time."""

    t_min: Leaf
    t_max: Leaf
    alpha_fn: Callable[[Array], Array] = static()
    sigma_fn: Callable[[Array], Array] | None = static()

    def alpha(self, t: Scalar) -> Array:
        """Return the given alpha."""
        return self.alpha_fn(jnp.asarray(t))

    def sigma(self, t: Scalar) -> Array:
        """Return the given sigma, or sqrt(1 - alpha^2)."""
        t = jnp.asarray(t)
        if self.sigma_fn is not None:
            return self.sigma_fn(t)
        return jnp.sqrt(jnp.maximum(1 - jnp.square(self.alpha_fn(t)), 0))


def cosine(t_min: Scalar = 1e-3, t_max: Scalar = 1.0) -> Cosine:
    """The cosine schedule, (alpha, sigma) = (cos, sin)(pi t / 2).

    Args:
      t_min: earliest time, in (0, t_max).
      t_max: latest time, at most 1, where the signal-to-noise ratio is exactly 0. A method whose
        drift is singular there (Euler-Maruyama) wants less, 0.99 say.

    Returns:
      A schedule.

    Reference:
      Improved Denoising Diffusion Probabilistic Models, Nichol and Dhariwal, 2021, equation 17,
      with offset s = 0.
    """
    return Cosine(t_min, t_max)


def linear_beta(
    beta_min: Scalar = 0.1, beta_max: Scalar = 20.0, t_min: Scalar = 1e-4, t_max: Scalar = 1.0
) -> LinearBeta:
    """The variance-preserving schedule of a linear beta.

    log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2 and sigma^2 = 1 - alpha^2.

    Args:
      beta_min: rate at t = 0, per unit of time.
      beta_max: rate at t = 1.
      t_min: earliest time; sigma grows like sqrt(t), so its rate is infinite at 0.
      t_max: latest time.

    Returns:
      A schedule.

    Reference:
      Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021,
      equation 33.
    """
    return LinearBeta(beta_min, beta_max, t_min, t_max)


def betas(table: Float[ArrayLike, " steps"]) -> Betas:
    """The variance-preserving schedule of a table of T discrete steps.

    alpha(k / T)^2 = prod_{i <= k} (1 - beta_i), with log alpha linear in between, so that a model
    trained with T discrete steps can be used in continuous time.

    Args:
      table: beta_1 ... beta_T, in (0, 1).

    Returns:
      A schedule on [0, 1] with ``t_min`` = 1 / T.

    Raises:
      ValueError: for an empty table or a beta outside (0, 1).

    Reference:
      Denoising Diffusion Probabilistic Models, Ho et al., 2020, equation 4.
    """
    table = np.asarray(table, np.float64)
    if table.ndim != 1 or table.size == 0 or not np.all((table > 0) & (table < 1)):
        raise ValueError(
            f"betas must be a non-empty vector of numbers in (0, 1), got shape {table.shape}; for "
            "Stable Diffusion it is np.linspace(0.00085**0.5, 0.012**0.5, 1000)**2"
        )
    integral = np.concatenate([[0.0], -np.cumsum(np.log1p(-table))])
    return Betas(integral, 1.0 / table.size, 1.0)


def variance_preserving(
    alpha: Callable[[Array], Array], t_min: Scalar = 1e-3, t_max: Scalar = 1.0
) -> Custom:
    """Any variance-preserving schedule, from alpha alone; sigma = sqrt(1 - alpha^2).

    Args:
      alpha: a function of time, falling from 1; the same function object each time, since it is
        part of the schedule's type.
      t_min: earliest time.
      t_max: latest time.

    Returns:
      A schedule.
    """
    return Custom(t_min, t_max, alpha, None)


def variance_exploding(
    sigma_min: Scalar = 0.01, sigma_max: Scalar = 50.0, t_min: Scalar = 1e-5, t_max: Scalar = 1.0
) -> VarianceExploding:
    """The variance-exploding schedule with a geometric noise scale.

    alpha = 1, sigma(t)^2 = sigma_min^2 ((sigma_max / sigma_min)^(2 t) - 1).

    Args:
      sigma_min: scale at the start, in the units of the data.
      sigma_max: scale at t = 1.
      t_min: earliest time.
      t_max: latest time.

    Returns:
      A schedule.

    Reference:
      Score-Based Generative Modeling through Stochastic Differential Equations, Song et al., 2021,
      equations 29 and 31.
    """
    return VarianceExploding(sigma_min, sigma_max, t_min, t_max)


def edm(sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0) -> EDM:
    """The schedule of EDM: alpha = 1, sigma(t) = t, so that time is the noise scale.

    Args:
      sigma_min: earliest time, in the units of the data.
      sigma_max: latest time.

    Returns:
      A schedule.

    Reference:
      Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022,
      table 1.
    """
    return EDM(sigma_min, sigma_max)


def linear_interpolation(t_min: Scalar = 1e-3, t_max: Scalar = 1.0) -> LinearInterpolation:
    """The straight path of flow matching: x_t = (1 - t) x_0 + t e, data at 0 and noise at 1.

    Args:
      t_min: earliest time.
      t_max: latest time; the signal-to-noise ratio is exactly 0 at 1.

    Returns:
      A schedule.

    Reference:
      Flow Matching for Generative Modeling, Lipman et al., 2023, equation 20 with sigma_min = 0 and
      time reversed.
    """
    return LinearInterpolation(t_min, t_max)


def custom(
    alpha: Callable[[Array], Array],
    sigma: Callable[[Array], Array],
    t_min: Scalar = 1e-3,
    t_max: Scalar = 1.0,
) -> Custom:
    """A schedule from two functions of time.

    Args:
      alpha: scale of the data; the same function object each time, it is part of the type.
      sigma: scale of the noise.
      t_min: earliest time; the functions' derivatives must be finite from here on.
      t_max: latest time.

    Returns:
      A schedule; ``process.gaussian`` checks that its signal-to-noise ratio falls.
    """
    return Custom(t_min, t_max, alpha, sigma)
