"""Fractional Brownian motion as a sum of Markov processes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from jaxinf.core import Key, Scalar, is_concrete, record
from jaxinf.core.types import Leaf
from jaxinf.markov import LinearGaussian
from jaxinf.vi.checks import check_least, check_positive

NODES = 32
"""Of Chebyshev's interpolation of the weights in the Hurst index, of which they are entire."""

SINGULAR = 1e14
"""Condition number of the weights' equations from which they are refused."""


@record
class FractionalBrownian:
    """See :func:`fractional_brownian`."""

    hurst: Leaf
    rates: Leaf
    """gamma, [K]."""
    horizon: Leaf
    coefficients: Leaf
    """[NODES, K], of the weights times max(gamma)^(H - 1/2) in Chebyshev's polynomials of H."""

    @property
    def weights(self) -> Float[Array, " K"]:
        """Return omega, a smooth function of the Hurst index."""
        angle = jnp.arccos(2 * jnp.asarray(self.hurst) - 1)
        waves = jnp.cos(jnp.arange(self.coefficients.shape[0]) * angle)
        return waves @ self.coefficients * jnp.max(self.rates) ** (0.5 - self.hurst)

    def transition(self, dt: Scalar) -> LinearGaussian:
        r"""Return the exact kernel of dY = -gamma Y dt + 1 dW over a time: one W, K states.

        .. math:: Y' = e^{-\gamma\,dt} Y + N(0, Q), \qquad
                  Q_{ij} = \frac{1 - e^{-(\gamma_i + \gamma_j) dt}}{\gamma_i + \gamma_j}
        """
        values, vectors = jnp.linalg.eigh(_shared(self.rates, dt))
        root = vectors * jnp.sqrt(jnp.maximum(values, 0))[None]
        return LinearGaussian(jnp.diag(jnp.exp(-self.rates * dt)), jnp.zeros_like(self.rates), root)

    def covariance(self, times: Float[Array, " n"]) -> Float[Array, "n n"]:
        """Return the covariance of the approximation at some times."""

        def between(t: Array, s: Array) -> Array:
            both = jnp.minimum(t, s)
            late = self.weights * jnp.exp(-self.rates * (t - both))
            early = self.weights * jnp.exp(-self.rates * (s - both))
            return late @ _shared(self.rates, both) @ early

        return jax.vmap(lambda t: jax.vmap(lambda s: between(t, s))(times))(times)

    def sample(self, key: Key, times: Float[Array, " n"]) -> Float[Array, " n"]:
        """Draw a path at ascending times from 0 on, with its exact law; W is not kept."""

        def step(y: Array, slot: Any) -> tuple[Array, Array]:
            key, dt = slot
            y = self.transition(dt).sample(key, y)
            return y, self.weights @ y

        slots = jax.random.split(key, times.shape[0]), jnp.diff(times, prepend=0.0)
        return jax.lax.scan(step, jnp.zeros_like(self.rates), slots)[1]

    def path_error(self) -> float:
        r"""Return the root of E int (B - B^)^2 dt / E int B^2 dt, in float64 from concrete numbers.

        Raises:
          TypeError: where they are traced.
        """
        if not is_concrete(self):
            raise TypeError("path_error is for concrete numbers: call it outside of jit and grad.")
        hurst, horizon = float(self.hurst), float(self.horizon)
        weights = np.asarray(self.weights, np.float64)
        matrix, right = _system(hurst, np.asarray(self.rates, np.float64), horizon)
        total = horizon ** (2 * hurst + 1) / (2 * hurst * (2 * hurst + 1))
        total /= special.gamma(hurst + 0.5) ** 2
        left = total - 2 * right @ weights + weights @ matrix @ weights
        return float(np.sqrt(max(left, 0.0) / total))


def _shared(rates: Array, t: Any) -> Array:
    """Return the covariance at a time of processes that start at 0 and share W, [K, K]."""
    sums = rates[:, None] + rates[None, :]
    return -jnp.expm1(-sums * t) / sums


def _system(hurst: float, rates: np.ndarray, horizon: float) -> tuple[np.ndarray, np.ndarray]:
    """Return A and b of the weights' equations A omega = b."""
    sums, order = rates[:, None] + rates[None, :], hurst + 0.5
    matrix = (horizon + np.expm1(-sums * horizon) / sums) / sums
    seen = special.gammainc(order, rates * horizon) * rates**-order
    later = special.gammainc(order + 1, rates * horizon) * rates ** -(order + 1)
    return matrix, horizon * seen - order * later


def _interpolated(gamma: np.ndarray, horizon: float) -> np.ndarray:
    """Return the scaled weights as Chebyshev coefficients in H; raise where they are lost."""
    condition = np.linalg.cond(_system(0.5, gamma, horizon)[0])
    if not condition < SINGULAR:
        raise ValueError(
            f"rates {gamma} cannot be told apart on [0, {horizon}], the condition number is "
            f"{condition:.1e}: take fewer terms or a larger ratio."
        )
    angles = np.pi * (np.arange(NODES) + 0.5) / NODES
    values = []
    for index in (np.cos(angles) + 1) / 2:
        weights = np.linalg.solve(*_system(index, gamma, horizon))
        values.append(weights * gamma.max() ** (index - 0.5))
    waves = np.cos(np.arange(NODES)[:, None] * angles[None])
    coefficients = waves @ np.stack(values) * 2 / NODES
    coefficients[0] /= 2
    return coefficients


def geometric_rates(terms: int = 5, ratio: float = 5.0) -> np.ndarray:
    r"""Rates of mean reversion on a geometric grid about 1.

    .. math:: \gamma_k = r^{k - (K + 1) / 2}, \qquad k = 1, \ldots, K

    Args:
      terms: K.
      ratio: r, above 1.

    Returns:
      gamma, float64, shape (K,), in units of one over time.

    Raises:
      ValueError: for fewer than one term, and for a ratio of 1 or below.

    Reference:
      R. Daems, M. Opper, G. Crevecoeur and T. Birdal, "Variational inference for SDEs driven by
      fractional noise" (2024), the Markov approximation.
    """
    check_least(terms=terms)
    if not ratio > 1:
        raise ValueError(f"ratio must be above 1, got {ratio}.")
    return ratio ** (np.arange(1, terms + 1) - (terms + 1) / 2)


def fractional_brownian(
    hurst: Scalar, rates: Any = None, *, horizon: Scalar = 1.0
) -> FractionalBrownian:
    r"""The Markov approximation of fractional Brownian motion of type II.

    .. math::
       B^H_t = \frac{1}{\Gamma(H + 1/2)} \int_0^t (t - s)^{H - 1/2} dW_s \approx
       \hat B_t = \sum_k \omega_k Y_k(t), \qquad dY_k = -\gamma_k Y_k\, dt + dW, \quad Y_k(0) = 0

    with the weights of least :math:`\int_0^T E (B^H_t - \hat B_t)^2 dt`, A omega = b:

    .. math::
       A_{ij} &= \frac{T + (e^{-(\gamma_i + \gamma_j) T} - 1) / (\gamma_i + \gamma_j)}
                     {\gamma_i + \gamma_j} \\
       b_k &= \frac{T}{\gamma_k^{a}} P(a, \gamma_k T)
              - \frac{a}{\gamma_k^{a + 1}} P(a + 1, \gamma_k T), \qquad a = H + \tfrac12

    for the regularised lower incomplete gamma function P.

    Args:
      hurst: H in (0, 1), a leaf: it may be traced and learnt.
      rates: gamma, concrete, shape (K,), :func:`geometric_rates` by default.
      horizon: T, concrete.

    Returns:
      The process: ``weights``, ``transition(dt)`` of Y, ``covariance(times)``,
      ``sample(key, times)`` and ``path_error()``.

    Raises:
      TypeError: for rates or a horizon that are traced.
      ValueError: for a concrete index outside (0, 1), for rates or a horizon that are not positive,
        and for rates that no weights can tell apart.

    Reference:
      R. Daems, M. Opper, G. Crevecoeur and T. Birdal, "Variational inference for SDEs driven by
      fractional noise" (2024), the proposition on optimal coefficients. The system is
      ill-conditioned, so it is solved in float64 at Chebyshev's nodes of H in (0, 1) and
      interpolated: in float64 to rounding, and usable in float32.
    """
    if not is_concrete((rates, horizon)):
        raise TypeError("rates and horizon must be concrete: only the Hurst index is learnt.")
    if is_concrete(hurst) and not 0 < float(hurst) < 1:
        raise ValueError(f"the Hurst index must lie between 0 and 1, got {hurst}.")
    gamma = np.asarray(geometric_rates() if rates is None else rates, np.float64)
    if gamma.ndim != 1 or not gamma.size:
        raise ValueError(f"rates must have shape (K,), got {gamma.shape}.")
    check_positive("rates", gamma)
    check_positive("horizon", horizon)
    coefficients = _interpolated(gamma, float(horizon))
    hurst, rates, horizon = (jnp.asarray(a, float) for a in (hurst, gamma, horizon))
    return FractionalBrownian(hurst, rates, horizon, jnp.asarray(coefficients, float))
