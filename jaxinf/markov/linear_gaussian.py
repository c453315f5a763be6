"""Linear-Gaussian kernels and the quadratic messages that they carry back."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Covariance, Dense, Diagonal, Full, Gaussian, Key, record
from jaxinf.core.triangular import triangular
from jaxinf.core.types import Leaf
from jaxinf.markov.kernel import Exactly, Point, Pullback

LOG_2PI = math.log(2 * math.pi)


@record
class Quadratic:
    """log h(x) = constant + linear . x - x' precision x / 2, in information form.

    The precision need not have full rank: an observation of some coordinates says nothing of the
    others, and a message of zeros says nothing at all.
    """

    constant: Leaf
    linear: Leaf
    precision: Leaf

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Return log h(x)."""
        return self.constant + self.linear @ x - x @ self.precision @ x / 2

    def times(self, other: "Quadratic") -> "Quadratic":
        """Return the product."""
        return jax.tree.map(jnp.add, self, other)

    def weigh(self, law: Gaussian | Point) -> tuple[Gaussian | Point, Float[Array, ""]]:
        """Return the law proportional to h times a law, and the log of its integral."""
        if isinstance(law, Point):
            return law, self(law.at)
        return tilt(law.mean, matrix_of(law.covariance, law.mean.size), self)


@record
class LinearGaussian:
    """y = matrix x + offset + root z for white z; any root of the noise's covariance will do."""

    matrix: Leaf
    offset: Leaf
    root: Leaf

    @property
    def sizes(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Kind and size of the start and of the end."""
        m, d = self.matrix.shape[-2:]
        return ("numbers", d), ("numbers", m)

    def at(self, x: Float[Array, " d"]) -> tuple[Array, Array]:
        """Return the mean of y given x, and a root of its covariance."""
        return self.matrix @ x + self.offset, self.root

    def sample(self, key: Key, x: Float[Array, " d"]) -> Float[Array, " m"]:
        """Draw y given x."""
        return draw(key, *self.at(x))

    def log_prob(self, x: Float[Array, " d"], y: Float[Array, " m"]) -> Float[Array, ""]:
        """Return log k(y | x), in nats; NaN where the noise has no density."""
        return self.law(x).log_prob(y)

    def push(self, prior: Gaussian) -> Gaussian:
        """Return the law of y for x drawn from a prior."""
        mean, root = self.at(prior.mean)
        if isinstance(prior.covariance, Full):
            return Gaussian(mean, Full(self._moved(prior.covariance.matrix)))
        spread = self.matrix @ matrix_of(prior.covariance, prior.mean.size)
        return law(mean, jnp.concatenate([spread, root], axis=1))

    def invert(self, prior: Gaussian) -> "LinearGaussian":
        """Return the kernel of x given y: Kalman's gain."""
        if isinstance(prior.covariance, Full):
            prior = Gaussian(prior.mean, prior.covariance.rooted)
        gain, expected, _, root = self._joint(prior)
        return LinearGaussian(gain, prior.mean - gain @ expected, root)

    def observe(self, prior: Gaussian, y: Float[Array, " m"]) -> tuple[Gaussian, Float[Array, ""]]:
        """Return the law of x given y, and the log density of y; in the prior's form."""
        if isinstance(prior.covariance, Full):
            return self._observe_full(prior.mean, prior.covariance.matrix, y)
        gain, expected, seen, root = self._joint(prior)
        posterior = Gaussian(prior.mean + gain @ (y - expected), Dense(root))
        return posterior, Gaussian(expected, Dense(seen)).log_prob(y)

    def _joint(self, prior: Gaussian) -> tuple[Array, Array, Array, Array]:
        """Return gain, mean and root of y, root of x given y: by one triangular root of both."""
        m, d = self.matrix.shape
        spread = matrix_of(prior.covariance, d)
        y = jnp.concatenate([self.matrix @ spread, self.root], axis=1)
        x = jnp.concatenate([spread, jnp.zeros((d, self.root.shape[1]), spread.dtype)], axis=1)
        joint = triangular(jnp.concatenate([y, x]))
        seen, across, root = joint[:m, :m], joint[m:, :m], joint[m:, m:]
        gain = jax.scipy.linalg.solve_triangular(seen, across.T, lower=True, trans=1).T
        return gain, self.matrix @ prior.mean + self.offset, seen, root

    def _moved(self, covariance: Array) -> Array:
        """Return the covariance of y for that of x."""
        moved = self.matrix @ covariance @ self.matrix.T
        return (moved + moved.T) / 2 + self.root @ self.root.T

    def _observe_full(self, mean: Array, covariance: Array, y: Array) -> tuple[Gaussian, Array]:
        """See :meth:`observe`; with whitened gain W, C - W' W is what is left of C."""
        factor = jnp.linalg.cholesky(self._moved(covariance))
        columns = jnp.concatenate(
            [self.matrix @ covariance, (y - self.matrix @ mean - self.offset)[:, None]], axis=1
        )
        white = jax.scipy.linalg.solve_triangular(factor, columns, lower=True)
        gain, apart = white[:, :-1], white[:, -1]
        log_det = jnp.sum(jnp.log(jnp.diagonal(factor)))
        value = -(apart @ apart + y.size * LOG_2PI) / 2 - log_det
        return Gaussian(mean + apart @ gain, Full(covariance - gain.T @ gain)), value

    def then(self, after: "LinearGaussian") -> "LinearGaussian":
        """Return the kernel of z given x."""
        root = jnp.concatenate([after.matrix @ self.root, after.root], axis=1)
        offset = after.matrix @ self.offset + after.offset
        return LinearGaussian(after.matrix @ self.matrix, offset, triangular(root))

    def beside(self, other: "LinearGaussian") -> "LinearGaussian":
        """Return the kernel of independent pairs, laid end to end."""
        diagonal = jax.scipy.linalg.block_diag
        return LinearGaussian(
            diagonal(self.matrix, other.matrix),
            jnp.concatenate([self.offset, other.offset]),
            diagonal(self.root, other.root),
        )

    def law(self, x: Float[Array, " d"]) -> Gaussian:
        """Return the law of y given x."""
        return law(*self.at(x))

    def likelihood(self, y: Float[Array, " m"]) -> Quadratic:
        """Return the message x -> log k(y | x)."""
        noise = Dense(triangular(self.root))
        return carry_back(self.matrix, _density(noise, y - self.offset))

    def tilt(self, x: Float[Array, " d"], message: Quadratic) -> tuple[Gaussian, Float[Array, ""]]:
        """Return the law proportional to k(y | x) h(y), and log (k h)(x)."""
        return tilt(*self.at(x), message)

    def pullback(self, message: Quadratic) -> Pullback:
        r"""Carry a message back: h -> k h, and the kernel guided by h.

        With h = (c, F, H), the root L of the noise and M = I + L' H L,

        .. math:: H' = A^\top (H - H L M^{-1} L^\top H) A, \quad
                  F' = A^\top (\tilde F - \tilde H b), \quad
                  y \mid x \sim N(A^\circ x + b^\circ, L M^{-1} L^\top)

        which holds for noise without a density and for messages without full rank.
        """
        root, fall, shift = _shrink(self.root, message)
        pull = message.precision @ root
        linear = message.linear - pull @ shift
        precision = message.precision - pull @ pull.T
        constant = message.constant + jnp.sum(jnp.square(shift)) / 2 - fall
        there = Quadratic(constant, linear, (precision + precision.T) / 2)
        moved = there.constant + there.linear @ self.offset
        moved -= self.offset @ there.precision @ self.offset / 2
        linear = there.linear - there.precision @ self.offset
        back = carry_back(self.matrix, Quadratic(moved, linear, there.precision))
        guided = LinearGaussian(
            self.matrix - root @ (pull.T @ self.matrix),
            self.offset + root @ (shift - pull.T @ self.offset),
            root,
        )
        return Pullback(back, Exactly(guided))


def _shrink(root: Array, message: Quadratic) -> tuple[Array, Array, Array]:
    """Return a root of (C^-1 + H)^-1 for C = root root', log det / 2 of the fall, root' linear."""
    inner = jnp.eye(root.shape[1], dtype=root.dtype) + root.T @ message.precision @ root
    factor = jnp.linalg.cholesky(inner)
    smaller = jax.scipy.linalg.solve_triangular(factor, root.T, lower=True).T
    return smaller, jnp.sum(jnp.log(jnp.diagonal(factor))), smaller.T @ message.linear


def tilt(mean: Array, root: Array, message: Quadratic) -> tuple[Gaussian, Float[Array, ""]]:
    """Return the law proportional to N(y; mean, root root') h(y), and the log of its integral."""
    smaller, fall, _ = _shrink(root, message)
    slope = message.linear - message.precision @ mean
    shift = smaller.T @ slope
    value = message(mean) + jnp.sum(jnp.square(shift)) / 2 - fall
    return law(mean + smaller @ shift, smaller), value


def carry_back(matrix: Array, message: Quadratic) -> Quadratic:
    """Return the message x -> h(matrix x)."""
    return Quadratic(
        message.constant, matrix.T @ message.linear, matrix.T @ message.precision @ matrix
    )


def _density(noise: Dense, y: Array) -> Quadratic:
    """Return the message u -> log N(y; u, noise)."""
    d = y.size
    constant = -noise.log_det_sqrt(d) - 0.5 * d * LOG_2PI - jnp.sum(jnp.square(noise.whiten(y))) / 2
    white = jax.scipy.linalg.solve_triangular(noise.factor, jnp.eye(d, dtype=y.dtype), lower=True)
    return Quadratic(constant, noise.precision(y), white.T @ white)


def matrix_of(covariance: Covariance, size: int) -> Float[Array, "n n"]:
    """Return a covariance's root as a matrix."""
    if isinstance(covariance, Full):
        covariance = covariance.rooted
    if isinstance(covariance, Dense):
        return covariance.factor
    return jax.vmap(covariance.sqrt, in_axes=1, out_axes=1)(jnp.eye(size))


def law(mean: Array, root: Array) -> Gaussian:
    """Return N(mean, root root')."""
    return Gaussian(mean, Dense(triangular(root)))


def draw(key: Key, mean: Array, root: Array) -> Array:
    """Return mean + root z for white z."""
    return mean + root @ jax.random.normal(key, root.shape[1:], mean.dtype)


def linear_gaussian(
    matrix: Array,
    noise: Covariance,
    offset: Array | None = None,
) -> LinearGaussian:
    """A kernel y ~ N(matrix x + offset, noise).

    Args:
      matrix: shape (m, d).
      noise: the covariance of what is added, ``core.dense(matrix)`` or
        ``core.Diagonal(standard_deviations)``; standard deviations of zero are a deterministic
        kernel, which has no density.
      offset: shape (m,), zero by default.

    Returns:
      An exact kernel; laws are :class:`jaxinf.core.Gaussian`, messages :class:`Quadratic`.

    Raises:
      ValueError: where the shapes do not fit.
    """
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2:
        raise ValueError(
            f"the matrix must have shape (to, from), got {matrix.shape}; a stack of kernels, a "
            "leading axis of time say, is jax.vmap(markov.linear_gaussian)(matrices, noises)."
        )
    m = matrix.shape[0]
    offset = jnp.zeros(m, matrix.dtype) if offset is None else jnp.asarray(offset)
    if offset.shape != (m,):
        raise ValueError(f"the offset must have shape {(m,)}, got {offset.shape}.")
    given = jnp.shape(noise.factor)[0] if isinstance(noise, Dense) else m
    if isinstance(noise, Diagonal) and jnp.size(noise.scale) > 1:
        given = jnp.size(noise.scale)
    if given != m:
        raise ValueError(
            f"the noise must be over {m} numbers, as the matrix has {m} rows; got one over {given}."
        )
    return LinearGaussian(matrix, offset, matrix_of(noise, m).astype(matrix.dtype))
