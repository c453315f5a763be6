"""Covariances as square-root operators: C = L L^T is held by L, and never inverted."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core.record import record
from jaxinf.core.types import Leaf, Scalar

SMALL = 16
"""Rows of a matrix up to which a product of its own costs more than it computes, on a CPU."""


@runtime_checkable
class Covariance(Protocol):
    """What Gaussian noise asks of its covariance C = L L^T; x is one example of any shape."""

    def sqrt(self, z: Array) -> Array:
        """L z: white noise to noise of covariance C."""
        ...

    def sqrt_transpose(self, x: Array) -> Array:
        """L^T x: the gradient of a function of L z with respect to z, from that by L z."""
        ...

    def whiten(self, x: Array) -> Array:
        """L^-1 x: noise of covariance C to white noise."""
        ...

    def precision(self, x: Array) -> Array:
        """C^-1 x."""
        ...

    def matvec(self, x: Array) -> Array:
        """C x."""
        ...

    def log_det_sqrt(self, size: int) -> Array:
        """Logarithm of |det L| for an example of ``size`` numbers."""
        ...

    def scaled(self, by: Scalar) -> "Covariance":
        """The covariance of ``by`` times the noise."""
        ...


@record
class Diagonal:
    """L = diag(scale), with ``scale`` of shape () or of the example's shape."""

    scale: Leaf

    def sqrt(self, z: Array) -> Array:
        """Return L z."""
        return self.scale * z

    def sqrt_transpose(self, x: Array) -> Array:
        """Return L^T x."""
        return self.scale * x

    def whiten(self, x: Array) -> Array:
        """Return L^-1 x."""
        return x / self.scale

    def precision(self, x: Array) -> Array:
        """Return C^-1 x."""
        return x / jnp.square(self.scale)

    def matvec(self, x: Array) -> Array:
        """Return C x."""
        return jnp.square(self.scale) * x

    def log_det_sqrt(self, size: int) -> Array:
        """Return log |det L|."""
        scale = jnp.asarray(self.scale)
        return jnp.sum(jnp.log(jnp.abs(scale))) * (size / scale.size)

    def dense(self, size: int) -> Array:
        """Return C as a (size, size) matrix."""
        return jnp.diag(jnp.broadcast_to(jnp.square(self.scale), (size,)))

    def scaled(self, by: Scalar) -> "Diagonal":
        """Return the covariance of ``by`` times the noise."""
        return Diagonal(by * self.scale)


@record
class Dense:
    """L = ``factor``, lower triangular (n, n); an example is taken as an (n, -1) matrix.

    With functions as examples, shape (points, channels), the points covary and the channels are
    independent; with n the size of the example it is a full covariance.
    """

    factor: Leaf

    def sqrt(self, z: Array) -> Array:
        """Return L z."""
        return _product(self.factor, self._rows(z)).reshape(z.shape)

    def sqrt_transpose(self, x: Array) -> Array:
        """Return L^T x."""
        return _product(self.factor.T, self._rows(x)).reshape(x.shape)

    def whiten(self, x: Array) -> Array:
        """Return L^-1 x."""
        return self._solve(self._rows(x)).reshape(x.shape)

    def precision(self, x: Array) -> Array:
        """Return C^-1 x."""
        return self._solve(self._solve(self._rows(x)), transpose=True).reshape(x.shape)

    def matvec(self, x: Array) -> Array:
        """Return C x."""
        return self.sqrt(self.sqrt_transpose(x))

    def log_det_sqrt(self, size: int) -> Array:
        """Return log |det L|."""
        repeats = size // self.factor.shape[0]
        return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.factor)))) * repeats

    def dense(self, size: int) -> Array:
        """Return C as a (size, size) matrix."""
        repeats = size // self.factor.shape[0]
        return jnp.kron(self.factor @ self.factor.T, jnp.eye(repeats, dtype=self.factor.dtype))

    def scaled(self, by: Scalar) -> "Dense":
        """Return the covariance of ``by`` times the noise."""
        return Dense(by * self.factor)

    def _rows(self, x: Array) -> Array:
        if x.size % self.factor.shape[0]:
            raise ValueError(
                f"a covariance over {self.factor.shape[0]} points cannot act on an example of "
                f"shape {x.shape}: its size must be a multiple of {self.factor.shape[0]}. "
                "Build it with core.dense(matrix) from a matrix over the example's leading axes."
            )
        return x.reshape(self.factor.shape[0], -1)

    def _solve(self, x: Array, transpose: bool = False) -> Array:
        return jax.scipy.linalg.solve_triangular(self.factor, x, lower=True, trans=int(transpose))


@record
class Full:
    """C itself, (n, n), factored where a root is asked for: cheap where laws are only moved.

    Half the digits of a root are lost where C is nearly singular; :class:`Dense` keeps them.
    """

    matrix: Leaf

    @property
    def rooted(self) -> Dense:
        """The same covariance, held by its Cholesky factor."""
        return Dense(jnp.linalg.cholesky(self.matrix))

    def sqrt(self, z: Array) -> Array:
        """Return L z."""
        return self.rooted.sqrt(z)

    def sqrt_transpose(self, x: Array) -> Array:
        """Return L^T x."""
        return self.rooted.sqrt_transpose(x)

    def whiten(self, x: Array) -> Array:
        """Return L^-1 x."""
        return self.rooted.whiten(x)

    def precision(self, x: Array) -> Array:
        """Return C^-1 x."""
        return self.rooted.precision(x)

    def matvec(self, x: Array) -> Array:
        """Return C x."""
        return (self.matrix @ x.reshape(self.matrix.shape[0], -1)).reshape(x.shape)

    def log_det_sqrt(self, size: int) -> Array:
        """Return log |det L|."""
        return self.rooted.log_det_sqrt(size)

    def dense(self, size: int) -> Array:
        """Return C as a (size, size) matrix."""
        repeats = size // self.matrix.shape[0]
        return jnp.kron(self.matrix, jnp.eye(repeats, dtype=self.matrix.dtype))

    def scaled(self, by: Scalar) -> "Full":
        """Return the covariance of ``by`` times the noise."""
        return Full(jnp.square(by) * self.matrix)


def add(a: Diagonal | Dense | Full, b: Diagonal | Dense | Full, size: int) -> Diagonal | Dense:
    """Return the covariance of the sum of two independent noises on examples of ``size``."""
    if isinstance(a, Diagonal) and isinstance(b, Diagonal):
        return Diagonal(jnp.sqrt(jnp.square(a.scale) + jnp.square(b.scale)))
    return Dense(jnp.linalg.cholesky(a.dense(size) + b.dense(size)))


def white() -> Diagonal:
    """White noise: C = I."""
    return Diagonal(1.0)


def dense(matrix: Float[Array, "n n"]) -> Dense:
    """A covariance from its matrix, in square-root form.

    Args:
      matrix: C, symmetric and positive definite, over the n leading points of an example.

    Returns:
      The covariance, held by its Cholesky factor.

    Raises:
      ValueError: where the matrix is concrete and not symmetric or not positive definite.
    """
    return Dense(_factor(matrix))


def full(matrix: Float[Array, "n n"]) -> Full:
    """A covariance from its matrix, in covariance form; see :func:`dense` for the other.

    Kalman's filter keeps the form of the law that it starts from: this one is twice as fast, and
    the square-root form stays exact where states are nearly known.

    Args:
      matrix: C, symmetric and positive definite, over the n leading points of an example.

    Returns:
      The covariance, held by the matrix.

    Raises:
      ValueError: as :func:`dense`.
    """
    if not isinstance(matrix, jax.core.Tracer):
        _factor(matrix)
    return Full(matrix)


def _product(matrix: Array, rows: Array) -> Array:
    """Return matrix @ rows, a small one by sums, which compile into what stands around them."""
    if len(matrix) > SMALL or rows.shape[1] > 1:
        return matrix @ rows
    return jnp.sum(matrix * rows[:, 0][None], axis=1)


def _factor(matrix: Array) -> Array:
    """Return a matrix's Cholesky factor; raise where it is concrete and no covariance."""
    factor = jnp.linalg.cholesky(matrix)
    if not isinstance(factor, jax.core.Tracer):
        tolerance = 10 * jnp.finfo(factor.dtype).eps * jnp.max(jnp.abs(matrix))
        if not bool(jnp.max(jnp.abs(matrix - matrix.T)) <= tolerance):
            raise ValueError("a covariance must be symmetric; pass (C + C.T) / 2 if it nearly is")
        if not bool(jnp.all(jnp.isfinite(factor))):
            raise ValueError(
                "a covariance must be positive definite, and this one's Cholesky factor is not "
                "finite; add a jitter to its diagonal, 1e-6 * trace(C) / n say"
            )
    return factor
