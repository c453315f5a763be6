"""What is believed of the clean example at a noise level, and the solves that update it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import carry, record, static

Apply = Callable[[Array], Array]
"""A linear map of arrays."""


class Solve(Protocol):
    """How systems with the matrix I + M are solved, M positive and given by its products."""

    def solve(self, m: Apply, r: Array) -> tuple[Array, Array]:
        """Return (I + M)^-1 r and log det (I + M)."""
        ...

    def diagonal(self, m: Apply, like: Array) -> Array:
        """Return the diagonal of M, of ``like``'s shape."""
        ...


class Belief(NamedTuple):
    """p(x_0 | x_t) as a likelihood sees it: N(mean, covariance)."""

    mean: Array
    covariance: Any
    """v -> V v, or None for a point."""
    solve: Any


@record
class Dense:
    """By the matrix and its Cholesky factor: exact, for observations of up to some hundreds."""

    def solve(self, m: Apply, r: Array) -> tuple[Array, Float[Array, ""]]:
        """Return (I + M)^-1 r and log det (I + M)."""
        matrix = jnp.eye(r.size, dtype=r.dtype) + _matrix(m, r)
        factor = jnp.linalg.cholesky((matrix + matrix.T) / 2)
        found = jax.scipy.linalg.cho_solve((factor, True), r.reshape(-1)).reshape(r.shape)
        return found, 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))

    def diagonal(self, m: Apply, like: Array) -> Array:
        """Return the diagonal of M."""
        return jnp.diagonal(_matrix(m, like)).reshape(like.shape)


@record
class ConjugateGradients:
    """By so many steps of conjugate gradients; the determinant is taken as that of ``RowSums``."""

    iterations: int = static()

    def solve(self, m: Apply, r: Array) -> tuple[Array, Float[Array, ""]]:
        """Return (I + M)^-1 r to within the steps, and log det (I + M) from M's row sums."""

        def step(held: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
            x, r, p, power = held
            q = p + m(p)
            share = _ratio(power, jnp.vdot(p, q))
            x, r = x + share * p, r - share * q
            left = jnp.vdot(r, r)
            return (x, r, r + _ratio(left, power) * p, left), None

        # JAX's own, a loop until converged with an implicit derivative, fails under shard_map
        start = jnp.zeros_like(r) + carry(r, 0.0), r, r, jnp.vdot(r, r)
        (x, *_), _ = jax.lax.scan(step, start, None, length=self.iterations)
        return x, RowSums().solve(m, r)[1]

    def diagonal(self, m: Apply, like: Array) -> Array:
        """Return M's row sums."""
        return RowSums().diagonal(m, like)


@record
class GMRES:
    """By so many steps of generalised minimal residuals, for an M that is not symmetric."""

    iterations: int = static()

    def solve(self, m: Apply, r: Array) -> tuple[Array, Float[Array, ""]]:
        """Return (I + M)^-1 r to within the steps, and log det (I + M) from M's row sums.

        The least residual over the span of r, M r, M^2 r, ..., by Arnoldi's basis of it.
        """
        size = jnp.linalg.norm(r)
        basis = [_ratio(r, size)]
        rows = jnp.zeros((self.iterations + 1, self.iterations), r.dtype) + carry(r, 0.0)
        for j in range(self.iterations):
            w = basis[j] + m(basis[j])
            for _ in range(2):  # twice: once loses orthogonality in float32
                for i, v in enumerate(basis):
                    share = jnp.vdot(v, w)
                    w = w - share * v
                    rows = rows.at[i, j].add(share)
            left = jnp.linalg.norm(w)
            rows = rows.at[j + 1, j].set(left)
            basis.append(_ratio(w, left))
        wanted = jnp.zeros(self.iterations + 1, r.dtype).at[0].set(size)
        shares = jnp.linalg.lstsq(rows, wanted)[0]
        x = sum((y * v for y, v in zip(shares, basis[:-1], strict=True)), jnp.zeros_like(r))
        return x, RowSums().solve(m, r)[1]

    def diagonal(self, m: Apply, like: Array) -> Array:
        """Return M's row sums."""
        return RowSums().diagonal(m, like)


@record
class RowSums:
    """By the diagonal matrix of M's row sums, which one product gives."""

    def solve(self, m: Apply, r: Array) -> tuple[Array, Float[Array, ""]]:
        """Return r / (1 + M 1) and the sum of the logarithms of 1 + M 1."""
        total = 1 + self.diagonal(m, r)
        return r / total, jnp.sum(jnp.log(total))

    def diagonal(self, m: Apply, like: Array) -> Array:
        """Return M 1, and 0 where that is negative."""
        return jnp.maximum(m(jnp.ones_like(like) + carry(like, 0.0)), 0)


def _matrix(m: Apply, like: Array) -> Float[Array, "n n"]:
    basis = jnp.eye(like.size, dtype=like.dtype).reshape(like.size, *like.shape)
    basis = basis + carry(like, 0.0)
    return jax.vmap(m)(basis).reshape(like.size, like.size)


def _ratio(a: Array, b: Array) -> Array:
    """Return a / b, and 0 once the residual has vanished or where the matrix is not positive."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
