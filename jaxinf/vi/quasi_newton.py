"""Covariances from a quasi-Newton method's pairs, diagonal and low rank."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf.core import Leaf, Scalar, record


class Pairs(NamedTuple):
    """The last pairs of steps and of the potential's gradients' differences, oldest first."""

    steps: Float[Array, "memory dim"]
    """0 where there is no pair yet."""
    slopes: Float[Array, "memory dim"]
    diagonal: Float[Array, " dim"]
    """Of the inverse Hessian that the pairs correct."""

    @classmethod
    def empty(cls, like: Array, memory: int) -> "Pairs":
        """Return no pairs."""
        none = jnp.zeros((memory, like.size), like.dtype)
        return cls(none, none, jnp.ones_like(like))


@record
class QuasiNewton:
    r"""The covariance :math:`A A^T` with :math:`A = D (I + Q (L - I) Q^T)`.

    D is a positive diagonal, Q has orthonormal columns, L is lower triangular; examples are vectors
    (dim,). It is one of ``core.Covariance``.
    """

    scale: Leaf
    basis: Leaf
    factor: Leaf

    def sqrt(self, z: Array) -> Array:
        """Return A z."""
        inner = self.basis.T @ z
        return self.scale * (z + self.basis @ (self.factor @ inner - inner))

    def sqrt_transpose(self, x: Array) -> Array:
        """Return A^T x."""
        x = self.scale * x
        inner = self.basis.T @ x
        return x + self.basis @ (self.factor.T @ inner - inner)

    def whiten(self, x: Array) -> Array:
        """Return A^-1 x."""
        x = x / self.scale
        inner = self.basis.T @ x
        return x + self.basis @ (self._solve(inner) - inner)

    def precision(self, x: Array) -> Array:
        """Return C^-1 x."""
        z = self.whiten(x)
        inner = self.basis.T @ z
        return (z + self.basis @ (self._solve(inner, transpose=True) - inner)) / self.scale

    def matvec(self, x: Array) -> Array:
        """Return C x."""
        return self.sqrt(self.sqrt_transpose(x))

    def log_det_sqrt(self, size: int) -> Array:
        """Return log |det A|."""
        return jnp.sum(jnp.log(self.scale)) + jnp.sum(jnp.log(jnp.diagonal(self.factor)))

    def dense(self, size: int) -> Array:
        """Return C as a (size, size) matrix."""
        return jax.vmap(self.matvec)(jnp.eye(size, dtype=self.scale.dtype))

    def scaled(self, by: Scalar) -> "QuasiNewton":
        """Return the covariance of ``by`` times the noise."""
        return QuasiNewton(jnp.abs(jnp.asarray(by)) * self.scale, self.basis, self.factor)

    def _solve(self, x: Array, transpose: bool = False) -> Array:
        return jax.scipy.linalg.solve_triangular(self.factor, x, lower=True, trans=int(transpose))


def remember(
    pairs: Pairs, step: Float[Array, " dim"], slope: Float[Array, " dim"]
) -> tuple[Pairs, Bool[Array, ""]]:
    r"""Take a pair in and the oldest out, where the potential is convex between the points.

    .. math::
       \alpha' = \Bigl(\frac{a}{b \alpha} + \frac{z^2}{b} - \frac{a s^2}{b c \alpha^2}\Bigr)^{-1},
       \quad a = z^T \alpha z, \quad b = z^T s, \quad c = s^T \alpha^{-1} s

    Returns the pairs, and whether the new one was taken: where :math:`b > 10^{-12} |z|^2`.
    """
    alpha = pairs.diagonal
    b = slope @ step
    kept = b > 1e-12 * (slope @ slope)
    b = jnp.where(kept, b, 1.0)
    a, c = slope @ (alpha * slope), jnp.where(kept, step @ (step / alpha), 1.0)
    inverse = a / (b * alpha) + slope**2 / b - a * step**2 / (b * c * alpha**2)
    # positive by Cauchy's inequality, and in rounding where a number's step is nearly all of it
    kept = kept & jnp.all(inverse > 0) & jnp.all(jnp.isfinite(inverse))
    new = Pairs(
        jnp.concatenate([pairs.steps[1:], step[None]]),
        jnp.concatenate([pairs.slopes[1:], slope[None]]),
        1 / jnp.where(kept, inverse, 1.0),
    )
    return jax.tree.map(lambda a, b: jnp.where(kept, a, b), new, pairs), kept


def inverse_hessian(pairs: Pairs) -> QuasiNewton:
    r"""Return the inverse-Hessian estimate of BFGS from pairs, in square-root form.

    .. math::
       \Sigma = \mathrm{diag}(\alpha) + \beta \gamma \beta^T, \quad
       \beta = [\mathrm{diag}(\alpha) Z, S], \quad
       \gamma = \begin{pmatrix} 0 & -R^{-1} \\ -R^{-T} & R^{-T}(E + Z^T \mathrm{diag}(\alpha) Z)
       R^{-1} \end{pmatrix}

    R is the upper triangle of :math:`S^T Z` and E its diagonal. The factor is Cholesky's of
    :math:`I + T \gamma T^T`, for :math:`\mathrm{diag}(\alpha)^{-1/2} \beta = Q T`; it is NaN where
    rounding leaves that indefinite. Slots without a pair change nothing.

    Reference:
      R. H. Byrd, J. Nocedal and R. B. Schnabel, "Representations of quasi-Newton matrices and their
      use in limited memory methods" (1994), theorem 2.2.
    """
    steps, slopes, alpha = pairs
    inner = steps @ slopes.T
    own = jnp.diagonal(inner)
    r = jnp.triu(inner) + jnp.diag(jnp.where(own == 0, 1.0, 0.0))
    scale = jnp.sqrt(alpha)
    scaled = scale[None] * slopes
    basis, t = jnp.linalg.qr(jnp.concatenate([scaled, steps / scale[None]]).T)
    memory = len(steps)
    zs, ss = t[:, :memory], t[:, memory:]

    # with w = Ss R^-T: T gamma T^T = -Zs w^T - w Zs^T + w (E + Z^T diag(alpha) Z) w^T
    w = jax.scipy.linalg.solve_triangular(r, ss.T).T
    cross = zs @ w.T
    core = w @ (jnp.diag(own) + scaled @ scaled.T) @ w.T
    middle = jnp.eye(len(t), dtype=t.dtype) - cross - cross.T + core
    return QuasiNewton(scale, basis, jnp.linalg.cholesky((middle + middle.T) / 2))
