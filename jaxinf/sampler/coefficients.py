"""Coefficients of exponential integrators in the log-SNR, for any prediction, order and schedule.

With lam = log(alpha / sigma), D the denoiser's x_0 and e = (x - alpha D) / sigma, let

  m^2 = q^2 alpha^2 + c^2 sigma^2,   G = (c^2 sigma D - q^2 alpha e) / m,   u = x / m,

for a unit vector (c, q). The probability flow is du = alpha sigma / m^2 G dlam: its linear part is
gone. (c, q) = (1, 0) makes G the clean example, (0, 1) minus the noise, and q / c = d the output of
a network preconditioned for data of scale d, which is constant on Gaussian data of that scale.

With noise eta the reverse equation keeps the marginals for any eta; with M = m / alpha,

  u_s = (M_s / M_t)^(eta^2) u_t + integral (1 + eta^2) (M_s / M)^(eta^2) alpha sigma / m^2 G dlam
        + sqrt(1 - (M_s / M_t)^(2 eta^2)) / c z.

A method replaces G by a polynomial through known values; its weights are integrals of Lagrange's
polynomials, by Gauss-Legendre quadrature in lam, which suffers no cancellation at small steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxinf.core import Leaf, Scalar, record, root, static

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)

Variable = Callable[[Array], Array]
"""lam -> what the polynomial is a polynomial of, elementwise."""


def log_snr(lam: Array) -> Array:
    """Polynomials in lam = log(alpha / sigma), as DPM-Solver and UniPC take them."""
    return lam


def noise_level(lam: Array) -> Array:
    """Polynomials in sigma / alpha, as rhoAB-DEIS takes them."""
    return jnp.exp(-lam)


def angle(lam: Array) -> Array:
    """Polynomials in arctan(sigma / alpha), in which v turns the state at unit rate."""
    return jnp.arctan(jnp.exp(-lam))


@record
class Kind:
    """What is interpolated, as a polynomial of what, with how much noise."""

    process: Leaf
    c: Leaf
    q: Leaf
    eta: Leaf
    variable: Variable = static()
    pair: str | None = static()
    """How two values are weighted: None integrates the line through them; "B2" and "B1" are UniPC's
    fixed shares of their difference, B2 also DPM-Solver++(2M)'s."""

    def scale(self, t: Scalar) -> Array:
        """Return m."""
        process = self.process
        return root((self.q * process.alpha(t)) ** 2 + (self.c * process.sigma(t)) ** 2)

    def value(self, t: Scalar, x: Array, clean: Array) -> Array:
        """Return G."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        noise = (x - alpha * clean) / sigma
        return (self.c**2 * sigma * clean - self.q**2 * alpha * noise) / self.scale(t)


class Linear(NamedTuple):
    """What a step does besides the values: x_s = scale x_t + noise z + direct D_t + ..."""

    scale: Leaf
    noise: Leaf
    direct: Leaf
    """Not 0 only where the step begins without signal or ends without noise, so that lam is
    infinite: there the clean example is taken as constant, and the values take no part."""
    finite: Leaf
    """Where lam is finite at both ends."""


def linear(kind: Kind, t: Scalar, s: Scalar) -> Linear:
    """Return what a step from t to s does besides the values."""
    process, c, power = kind.process, kind.c, kind.eta**2
    alpha_t, sigma_t, alpha_s, sigma_s = (
        process.alpha(t),
        process.sigma(t),
        process.alpha(s),
        process.sigma(s),
    )
    finite = (alpha_t > 0) & (sigma_s > 0)
    signal = jnp.where(finite, alpha_t, 1.0)
    left, right = signal * sigma_s, alpha_s * sigma_t
    # (M_s^2 / M_t^2 - 1) / c^2, which is not positive
    fall = (left - right) * (left + right) / jnp.square(alpha_s * kind.scale(t))
    fall = jnp.where(finite, fall, 0.0)
    logarithm = power * jnp.log1p(c**2 * fall)
    mixed = c > 0
    lost = jnp.where(mixed, -jnp.expm1(logarithm) / jnp.where(mixed, c**2, 1.0), -power * fall)
    carried = sigma_s * alpha_t / (alpha_s * sigma_t)  # exp(-h): 0 where an end is infinite
    some = carried > 0
    kept = jnp.where(some, jnp.where(some, carried, 1.0) ** power, power == 0)
    ratio = kind.scale(s) / kind.scale(t)
    return Linear(
        jnp.where(finite, ratio * jnp.exp(logarithm / 2), sigma_s / sigma_t * kept),
        jnp.where(finite, kind.scale(s) * root(lost), sigma_s * root((1 - kept) * (1 + kept))),
        jnp.where(finite, 0.0, alpha_s * (1 - carried * kept)),
        finite,
    )


def weights(
    kind: Kind,
    start: Array,
    end: Array,
    s: Scalar,
    nodes: Float[Array, " nodes"],
    known: Bool[Array, " nodes"],
) -> Float[Array, " nodes"]:
    """Return the weights of values of G in x_s.

    Args:
      kind: what is interpolated.
      start: lam where the step begins.
      end: lam where it ends.
      s: the time where it ends.
      nodes: lam of the values; the first is ``start``.
      known: which of them are used.

    Returns:
      The weights, 0 for nodes that are not known.
    """
    width = end - start
    lam = start + width * (1 + jnp.asarray(_NODES, nodes.dtype)) / 2
    share = _density(kind, lam, end, s) * jnp.asarray(_WEIGHTS, nodes.dtype) / 2 * width
    place, at = kind.variable(lam), kind.variable(nodes)
    pairs = known[:, None] & known[None] & ~np.eye(nodes.shape[0], dtype=bool)
    apart = jnp.where(pairs, at[:, None] - at[None], 1.0)
    factors = (place[:, None, None] - at[None, None]) / apart[None]
    basis = jnp.prod(jnp.where(pairs[None], factors, 1.0), axis=2)
    exact = jnp.where(known, share @ basis, 0.0)
    if kind.pair is None:
        return exact
    total = jnp.sum(share)
    at_end = _density(kind, end, end, s) * width
    two = jnp.sum(known) == 2
    gap = jnp.where(two, jnp.sum(jnp.where(known, nodes, 0.0)) - 2 * start, 1.0)
    other = (at_end if kind.pair == "B1" else total) / 2 * width / gap
    fixed = jnp.where(known, other, 0.0).at[0].set(total - other)
    return jnp.where(two, fixed, exact)


def _density(kind: Kind, lam: Array, end: Array, s: Scalar) -> Array:
    """Return m_s (1 + eta^2) (M_s / M)^(eta^2) alpha sigma / m^2 at lam."""
    c, q, power = kind.c**2, kind.q**2, kind.eta**2
    faded = (q + c * jnp.exp(-2 * end)) / (q + c * jnp.exp(-2 * lam))
    rate = (1 + power) / (q * jnp.exp(lam) + c * jnp.exp(-lam))
    return kind.scale(s) * rate * faded ** (power / 2)
