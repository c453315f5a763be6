"""Monotone rational-quadratic splines of one number."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import record, static

LEAST = 1e-3
"""Of a slope, and of a bin's width and height as shares of the whole."""
OFFSET = math.log(math.expm1(1 - LEAST))
"""Where softplus makes a slope one."""


@record
class Spline:
    """A monotone rational-quadratic spline of one number; see :func:`spline`."""

    bins: int = static()
    limit: float = static()

    @property
    def size(self) -> int:
        """How many parameters a number has."""
        return 3 * self.bins - 1

    def forward(self, params: Float[Array, " size"], x: Float[Array, ""]) -> tuple[Array, Array]:
        """Return y, and log dy / dx."""
        inside = jnp.abs(x) < self.limit
        safe = jnp.where(inside, x, 0.0)
        left, width, low, height, before, after = self._bin(params, safe, vertical=False)
        y, log_slope = _rational((safe - left) / width, width, low, height, before, after)
        return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0.0)

    def pull(self, params: Float[Array, " size"], y: Float[Array, ""]) -> tuple[Array, Array]:
        """Return x, and log dy / dx there; in its bin x solves a quadratic equation."""
        inside = jnp.abs(y) < self.limit
        safe = jnp.where(inside, y, 0.0)
        left, width, low, height, before, after = self._bin(params, safe, vertical=True)
        slope, up = height / width, safe - low
        bend = up * (before + after - 2 * slope)
        a = height * (slope - before) + bend
        b = height * before - bend
        c = -slope * up
        share = 2 * c / (-b - jnp.sqrt(jnp.maximum(b * b - 4 * a * c, jnp.finfo(y.dtype).tiny)))
        log_slope = _rational(share, width, low, height, before, after)[1]
        x = left + share * width
        return jnp.where(inside, x, y), jnp.where(inside, log_slope, 0.0)

    def _bin(self, params: Array, at: Array, *, vertical: bool) -> tuple[Array, ...]:
        """Return left, width, low, height and both slopes of the bin that holds a number."""
        n = self.bins
        xs, ys = self._knots(params[:n]), self._knots(params[n : 2 * n])
        inner = LEAST + jax.nn.softplus(params[2 * n :] + OFFSET)
        slopes = jnp.concatenate([jnp.ones_like(inner[:1]), inner, jnp.ones_like(inner[:1])])
        passed = at >= (ys if vertical else xs)[1:-1]
        # a bin is picked by a product: a gather's derivative is a scatter, which is slow
        ones = jnp.ones_like(passed[:1])
        here = jnp.concatenate([ones, passed]) & ~jnp.concatenate([passed, ~ones])
        rows = (xs[:-1], jnp.diff(xs), ys[:-1], jnp.diff(ys), slopes[:-1], slopes[1:])
        return tuple(jnp.sum(jnp.where(here, row, 0.0)) for row in rows)

    def _knots(self, logits: Array) -> Array:
        """Return the edges of bins, from -limit to limit."""
        shares = LEAST + (1 - LEAST * self.bins) * jax.nn.softmax(logits)
        inner = self.limit * (2 * jnp.cumsum(shares)[:-1] - 1)
        end = jnp.full_like(inner[:1], self.limit)
        return jnp.concatenate([-end, inner, end])


def _rational(
    share: Array, width: Array, low: Array, height: Array, before: Array, after: Array
) -> tuple[Array, Array]:
    """Return height and log slope at a share of a bin's width."""
    slope, rest = height / width, 1 - share
    mixed = share * rest
    below = slope + (before + after - 2 * slope) * mixed
    y = low + height * (slope * share * share + before * mixed) / below
    rise = after * share * share + 2 * slope * mixed + before * rest * rest
    return y, 2 * jnp.log(slope / below) + jnp.log(rise)


def spline(bins: int = 8, limit: float = 5.0) -> Spline:
    r"""A monotone rational-quadratic spline of one number, the identity outside an interval.

    .. math:: y = y_k + \frac{(y_{k+1} - y_k) [s_k \xi^2 + d_k \xi (1 - \xi)]}
        {s_k + [d_{k+1} + d_k - 2 s_k] \xi (1 - \xi)}, \qquad
        \xi = \frac{x - x_k}{x_{k+1} - x_k}, \quad s_k = \frac{y_{k+1} - y_k}{x_{k+1} - x_k}

    Args:
      bins: between the knots :math:`(x_k, y_k)`; slopes :math:`d_k` are one at both ends.
      limit: B, the interval is [-B, B] on both axes.

    Returns:
      The map, for :func:`coupling` and :func:`autoregressive`; it has no number of its own.

    Raises:
      ValueError: for fewer than 2 bins, more than 500, and a limit that is not positive.

    Reference:
      C. Durkan, A. Bekasov, I. Murray and G. Papamakarios, "Neural Spline Flows" (2019), eqs. 4 to
      8; the least share of a bin and the least slope are 1e-3, as there.
    """
    if not 2 <= bins <= 500:
        raise ValueError(f"bins must lie between 2 and 500, got {bins}.")
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}.")
    return Spline(bins, float(limit))
