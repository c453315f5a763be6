"""Laws of data whose denoiser, marginals and probability flow are known exactly, in NumPy."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jaxinf.core import Leaf, Scalar, record
from jaxinf.process import Gaussian

MOST_STEPS = 1280
Numbers = np.ndarray | float
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


@dataclass(frozen=True, eq=False)
class Law:
    """x_0 = R y, the coordinates of y independent, each a mixture of Gaussians on the line.

    White noise has no direction, so the probability flow carries each coordinate of R^T x along
    its own quantiles: x_s = F_s^-1(F_t(x_t)), and any number of dimensions has an exact flow.
    """

    weights: np.ndarray
    """Shape (d, k), rows summing to one."""
    means: np.ndarray
    """Shape (d, k)."""
    scales: np.ndarray
    """Standard deviations, shape (d, k)."""
    rotation: np.ndarray
    """R, orthogonal, shape (d, d)."""

    def components(self, level: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the components' means and standard deviations at (alpha, sigma)."""
        alpha, sigma = level
        return alpha * self.means, np.hypot(alpha * self.scales, sigma)

    def cdf(self, y: np.ndarray, level: tuple[Any, Any]) -> np.ndarray:
        """Return each coordinate's distribution function at y, shape (batch, d)."""
        means, scales = self.components(level)
        upper = (means - y[..., None]) / (scales * math.sqrt(2))
        return np.sum(self.weights * _erfc(upper), axis=-1) / 2

    def quantile(self, u: np.ndarray, level: tuple[Any, Any]) -> np.ndarray:
        """Return the y at which each coordinate's distribution function is u, by bisection."""
        means, scales = self.components(level)
        low = np.broadcast_to(np.min(means - 9 * scales, axis=-1), u.shape)
        high = np.broadcast_to(np.max(means + 9 * scales, axis=-1), u.shape)
        for _ in range(64):
            middle = (low + high) / 2
            below = self.cdf(middle, level) < u
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    def at(self, u: np.ndarray, level: tuple[Any, Any]) -> np.ndarray:
        """Return the examples whose coordinates have the quantiles u."""
        return self.quantile(u, level) @ self.rotation.T

    def draw(self, rng: np.random.Generator, count: int, level: tuple[Any, Any]) -> np.ndarray:
        """Draw examples of the marginal, shape (count, d)."""
        means, scales = self.components(level)
        u = rng.uniform(size=(count, len(means), 1))
        chosen = np.sum(u > np.cumsum(self.weights, axis=1)[:, :-1], axis=-1)
        rows = np.arange(len(means))
        y = means[rows, chosen] + scales[rows, chosen] * rng.normal(size=chosen.shape)
        return y @ self.rotation.T

    def moments(self, level: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the means and variances of the coordinates of y, shape (d,)."""
        means, scales = self.components(level)
        mean = np.sum(self.weights * means, axis=1)
        return mean, np.sum(self.weights * (scales**2 + means**2), axis=1) - mean**2


def posterior_mean(np: Any, law: Any, x: Any, alpha: Any, sigma: Any) -> Any:
    """Return E[x_0 | x_t = x], written once for NumPy and JAX.

    Args:
      np: the array module.
      law: what has ``weights``, ``means``, ``scales`` and ``rotation``.
      x: the noisy examples, shape (..., d).
      alpha: scale of the data, a number or shape (batch, 1, 1).
      sigma: scale of the noise, likewise.
    """
    y = (x @ law.rotation)[..., None]
    means = alpha * law.means
    variance = (alpha * law.scales) ** 2 + sigma**2
    clean = law.means + alpha * law.scales**2 / variance * (y - means)
    if law.weights.shape[1] == 1:
        return clean[..., 0] @ law.rotation.T
    logits = np.log(law.weights) - (np.log(variance) + (y - means) ** 2 / variance) / 2
    shares = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    shares = shares / np.sum(shares, axis=-1, keepdims=True)
    return np.sum(shares * clean, axis=-1) @ law.rotation.T


@record
class Native:
    """The same denoiser in JAX, for one example."""

    process: Leaf
    weights: Leaf
    means: Leaf
    scales: Leaf
    rotation: Leaf

    def __call__(self, x: Array, t: Any, cond: Any = None) -> Array:
        """Return E[x_0 | x_t = x]."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return posterior_mean(jax.numpy, self, x, alpha, sigma)


@jax.jit
@partial(jax.vmap, in_axes=(None, 0))
def _levels(process: Gaussian, t: Scalar) -> tuple[Array, Array]:
    return process.alpha(t), process.sigma(t)


def levels(process: Gaussian, times: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """The scales of data and noise, x_t = alpha x_0 + sigma e, as NumPy arrays.

    Args:
      process: the process.
      times: any shape.

    Returns:
      (alpha, sigma), each of the times' shape; in float64 within ``certify``.
    """
    times = np.asarray(times, np.float64)
    alpha, sigma = _levels(process, times.ravel())
    return np.asarray(alpha).reshape(times.shape), np.asarray(sigma).reshape(times.shape)


class Denoiser:
    """The exact denoiser that a sampler is run with: ``denoise(x, t)`` in NumPy, in batches.

    ``x`` has shape (batch, d); ``t`` is a time of the process, one for all or shape (batch,). It
    counts its calls. What runs in JAX takes ``native``, the same function as a pytree, where
    ``recording`` is False.
    """

    def __init__(self, process: Gaussian, law: Law, recording: bool = False):
        self.process, self.law, self.recording = process, law, recording
        self.times: list[float] = []
        """The times at which it was called."""
        self.rows = 0
        """For how many examples it was called, all calls together."""
        self._known: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def native(self) -> Native:
        """The denoiser as a pytree."""
        law = self.law
        return Native(self.process, law.weights, law.means, law.scales, law.rotation)

    def __call__(self, x: np.ndarray, t: Any) -> np.ndarray:
        """Return E[x_0 | x_t = x], of x's shape."""
        x, t = np.asarray(x, np.float64), np.asarray(t, np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.law.means) or t.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"denoise(x, t) wants x of shape (batch, {len(self.law.means)}) and t a number or "
                f"of shape (batch,), got {x.shape} and {t.shape}; the adapter should hand x on as "
                "it came, and t in the time of the process"
            )
        if self.recording:
            self.rows += len(x)
            self.times += np.unique(t).tolist()
        alpha, sigma = self._level(t)
        return posterior_mean(np, self.law, x, alpha, sigma)

    def _level(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if t.ndim:
            alpha, sigma = levels(self.process, t)
            return alpha[:, None, None], sigma[:, None, None]
        if (time := float(t)) not in self._known:
            self._known[time] = levels(self.process, t)
        return self._known[time]


Run = Callable[[Denoiser, np.ndarray, int], np.ndarray]
"""(denoise, x_T, seed) -> x, all of it NumPy in batches."""
Build = Callable[[Gaussian, np.ndarray], Run]
"""(process, times) -> run."""


def mixture(seed: int, dimensions: int = 4) -> Law:
    """A rotated product of mixtures of three Gaussians, of scale about one."""
    rng = np.random.default_rng(seed)
    shape = (dimensions, 3)
    rotation, _ = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))
    weights = rng.dirichlet(np.full(3, 5.0), size=dimensions)
    means = np.array([-1.0, 0.1, 1.0]) + rng.uniform(-0.2, 0.2, size=shape)
    return Law(weights, means, rng.uniform(0.35, 0.6, size=shape), rotation)


def normal(means: Any, scales: Any) -> Law:
    """Independent Gaussian coordinates."""
    means, scales = (np.asarray(a, np.float64)[:, None] for a in (means, scales))
    return Law(np.ones_like(means), means, scales, np.eye(len(means)))


def starts(process: Gaussian, law: Law, times: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return the examples at the first time whose coordinates have the quantiles u."""
    return law.at(u, levels(process, times[0]))


def ends(process: Gaussian, law: Law, times: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return where the exact flow takes the examples of the quantiles u.

    A last step to a time without noise is the denoiser, as it is for every method that makes one.
    """
    noisy = levels(process, times[-1])[1] > 0
    level = levels(process, times[-1 if noisy else -2])
    x = law.at(u, level)
    return x if noisy else posterior_mean(np, law, x, *level)


def time_at(process: Gaussian, ratio: Numbers) -> np.ndarray:
    """Return the times at which sigma / alpha has the given values, by bisection."""
    low, high = np.zeros_like(ratio), np.full_like(ratio, float(process.t_max))
    for _ in range(64):
        middle = (low + high) / 2
        alpha, sigma = levels(process, middle)
        below = sigma < ratio * alpha
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def spaced(process: Gaussian, steps: int, rho: float = 7.0) -> np.ndarray:
    """Times at which sigma / alpha falls from 80 to 0.05 by Karras' power law.

    Both ends have noise: a last step to none hides, or costs, a method's order. The range is cut to
    the process's own.
    """
    alpha, sigma = levels(process, np.array([float(process.t_max), float(process.t_min)]))
    first = min(80.0, sigma[0] / alpha[0]) if alpha[0] > 0 else 80.0
    last = max(0.05, sigma[1] / alpha[1])
    ramp = np.linspace(first ** (1 / rho), last ** (1 / rho), steps + 1) ** rho
    padded = np.pad(ramp, (0, max(0, MOST_STEPS - steps)), mode="edge")  # one shape: one compile
    return time_at(process, padded)[: steps + 1]
