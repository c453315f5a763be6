"""A triangular map that makes particles about white, fitted to them in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Leaf, record

ROUNDS = 2
"""Of regressions of means and scales in turn."""
RIDGE = 1e-6
"""Of the regressions, whose columns have variance one."""


@record
class Transport:
    """A triangular map whose scales depend on the numbers before; see :func:`fit_transport`."""

    offset: Leaf
    matrix: Leaf
    """Strictly lower triangular, as the slopes."""
    log_scale: Leaf
    slopes: Leaf

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and the log of the determinant of dz / du."""
        log_scale = self.log_scale + self.slopes @ u
        z = self.offset + self.matrix @ u + jnp.exp(log_scale) * u
        return z, jnp.sum(log_scale)

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u, one number after another."""

        def put(i: Array, u: Array) -> Array:
            apart = z[i] - self.offset[i] - self.matrix[i] @ u
            return u.at[i].set(apart * jnp.exp(-self.log_scale[i] - self.slopes[i] @ u))

        return jax.lax.fori_loop(0, z.size, put, jnp.zeros_like(z))


@record
class Triangular:
    """See :func:`triangular`."""


def triangular() -> Triangular:
    """Move particles in coordinates in which they are about white, found at each level.

    For :func:`temper`'s ``learn``, where scales differ from place to place and no one metric fits:
    :func:`fit_transport` takes the covariance's place; ``dim`` regressions on ``dim`` numbers a
    level. Numbers that set the scales of others must come before them.
    """
    return Triangular()


def fit_transport(
    z: Float[Array, "n dim"], weights: Float[Array, " n"] | None = None
) -> tuple[Transport, Float[Array, "n dim"]]:
    r"""Fit a triangular map from white noise to particles.

    .. math:: z_i = m_i + \sum_{j<i} A_{ij} u_j + \exp\Bigl(a_i + \sum_{j<i} B_{ij} u_j\Bigr) u_i

    Number by number: :math:`z_i` is regressed on those before, the logarithm of the squared
    residual likewise, and :math:`z_i` again with the inverse variances as weights, twice; then the
    mean square of :math:`u_i` is made one. So scales that follow other numbers, as in hierarchical
    models with their scales first, become equal in u; a Gaussian's map is its Cholesky factor.

    Args:
      z: particles.
      weights: of each, not negative; equal by default.

    Returns:
      The map, and the particles' u.

    Raises:
      ValueError: when there are not more particles than the last regression has coefficients.

    Reference:
      M. Parno and Y. Marzouk, "Transport map accelerated Markov chain Monte Carlo", SIAM/ASA JUQ
      2018 (maps that precondition moves); A. Harvey, "Estimating regression models with
      multiplicative heteroscedasticity", Econometrica 1976 (the regression of log squares).
    """
    n, dim = z.shape
    if n <= dim + 1:
        raise ValueError(
            f"{n} particles in {dim} dimensions cannot say how scales depend on places: take more "
            f"than {dim + 1}, a hundred times {dim} say."
        )
    weights = jnp.ones(n, z.dtype) if weights is None else weights

    def number(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        seen, means, scales = carry  # seen: ones, and the u that were found, a row each
        u, mean, scale = _number(seen, z[:, i], weights)
        return seen.at[i + 1].set(u), means.at[i].set(mean), scales.at[i].set(scale)

    seen = jnp.concatenate([jnp.ones((1, n), z.dtype), jnp.zeros((dim, n), z.dtype)])
    blank = jnp.zeros((dim, dim + 1), z.dtype)
    seen, means, scales = jax.lax.fori_loop(0, dim, number, (seen, blank, blank))
    return Transport(means[:, 0], means[:, 1:], scales[:, 0], scales[:, 1:]), seen[1:].T


def _number(seen: Array, y: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return u of one number, with the coefficients of its mean and log scale in what was seen."""
    ridge = RIDGE * jnp.eye(seen.shape[0], dtype=y.dtype)
    least = jnp.finfo(y.dtype).tiny

    def regress(y: Array, weights: Array) -> Array:
        weighted = seen * (weights / jnp.sum(weights))[None]
        return jnp.linalg.solve(weighted @ seen.T + ridge, weighted @ y)

    def mean_of(scale: Array) -> Array:
        log_precision = -2 * (scale @ seen)
        return regress(y, weights * jnp.exp(log_precision - jnp.max(log_precision)))

    def again(_: Any, scale: Array) -> Array:
        return regress(jnp.log(jnp.square(y - mean_of(scale) @ seen) + least), weights) / 2

    scale = jax.lax.fori_loop(0, ROUNDS, again, jnp.zeros_like(seen[:, 0]))
    mean = mean_of(scale)
    u = (y - mean @ seen) * jnp.exp(-(scale @ seen))
    spread = jnp.sqrt(weights @ jnp.square(u) / jnp.sum(weights))
    return u / spread, mean, scale.at[0].add(jnp.log(spread))
