"""The Kolmogorov-Smirnov test of uniform numbers, inside compiled programs too."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.diagnostics.samples import check_finite

TERMS = 8
"""Of either series; where they meet, the next is below 1e-40."""


def kolmogorov_smirnov(u: Float[Array, "n *event"]) -> Float[Array, "*event"]:
    r"""The probability that n independent uniform numbers are as far from uniform as these.

    .. math:: D = \sup_z |F_n(z) - z|, \qquad
              p \approx Q\!\left(D\sqrt n + \frac{1}{6\sqrt n} + \frac{D\sqrt n - 1}{4n}\right),
              \qquad Q(x) = 2 \sum_{k \ge 1} (-1)^{k-1} e^{-2k^2x^2}

    The two terms leave an error of up to 3e-3 at n = 10 and 3e-4 at n = 100.

    Args:
      u: numbers in [0, 1], at least two, along the leading axis.

    Returns:
      One p-value for each number of an event.

    Raises:
      ValueError: for fewer than two numbers, and for what is not finite.

    Reference:
      N. Smirnov, "Table for Estimating the Goodness of Fit of Empirical Distributions", Annals of
      Mathematical Statistics 1948 (the limit law); J. Vrbik, "Small-Sample Corrections to
      Kolmogorov-Smirnov Test Statistic", Pioneer Journal of Theoretical and Applied Statistics
      2018 (the correction).
    """
    if u.ndim < 1 or u.shape[0] < 2:
        raise ValueError(f"u must hold at least two numbers along its first axis, got {u.shape}.")
    check_finite("u", u)
    n = u.shape[0]
    ordered = jnp.sort(u, axis=0)
    steps = jnp.arange(n, dtype=u.dtype).reshape(-1, *[1] * (u.ndim - 1))
    above = jnp.max((steps + 1) / n - ordered, axis=0)
    below = jnp.max(ordered - steps / n, axis=0)
    x = jnp.maximum(above, below) * n**0.5
    return _tail(x + 1 / (6 * n**0.5) + (x - 1) / (4 * n))


def _tail(x: Float[Array, "*event"]) -> Float[Array, "*event"]:
    """Return Q(x): its own series where x is large, that of the Jacobi theta identity elsewhere."""
    k = jnp.arange(1, TERMS + 1, dtype=x.dtype).reshape(-1, *[1] * x.ndim)
    large = jnp.maximum(x, 1)[None]
    right = 2 * jnp.sum((-1) ** (k - 1) * jnp.exp(-2 * jnp.square(k * large)), axis=0)
    small = jnp.clip(x, 1e-2, 1)[None]
    inside = jnp.exp(-jnp.square((2 * k - 1) * jnp.pi / small) / 8)
    left = 1 - (2 * jnp.pi) ** 0.5 / small[0] * jnp.sum(inside, axis=0)
    return jnp.where(x > 1, right, left)
