"""Expectations under a standard normal law as weighted sums."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Key, record, static
from jaxinf.vi.checks import check_least

MOST = 200_000
"""Nodes of a product rule beyond which it is refused."""


@runtime_checkable
class Nodes(Protocol):
    """Where a function is evaluated, and what its values count."""

    def __call__(
        self, key: Key, dim: int
    ) -> tuple[Float[Array, "nodes dim"], Float[Array, " nodes"]]:
        """Return nodes and weights, which sum to 1."""
        ...


@record
class GaussHermite:
    """See :func:`gauss_hermite`."""

    points: int = static()

    def __call__(
        self, key: Key, dim: int
    ) -> tuple[Float[Array, "nodes dim"], Float[Array, " nodes"]]:
        """Return the product rule; the key is not used."""
        if self.points**dim > MOST:
            raise ValueError(
                f"{self.points} points in {dim} dimensions are {self.points}**{dim} nodes, more "
                f"than {MOST}: use fewer points, or monte_carlo(draws)."
            )
        x, w = np.polynomial.hermite_e.hermegauss(self.points)
        grid = np.stack(np.meshgrid(*[x] * dim, indexing="ij"), -1).reshape(-1, dim)
        weights = np.stack(np.meshgrid(*[w / w.sum()] * dim, indexing="ij"), -1).reshape(-1, dim)
        return jnp.asarray(grid, float), jnp.asarray(weights.prod(-1), float)


@record
class MonteCarlo:
    """See :func:`monte_carlo`."""

    draws: int = static()

    def __call__(
        self, key: Key, dim: int
    ) -> tuple[Float[Array, "nodes dim"], Float[Array, " nodes"]]:
        """Draw."""
        keys = jax.random.split(key, self.draws)
        nodes = jax.vmap(lambda key: jax.random.normal(key, (dim,), float))(keys)
        return nodes, jnp.full(self.draws, 1 / self.draws)


def gauss_hermite(points: int) -> GaussHermite:
    r"""The product of Gauss's rules, exact for polynomials of degree 2 points - 1 in each number.

    .. math:: E[f(u)] \approx \sum_i w_i f(u_i), \qquad u \sim N(0, I)

    Args:
      points: in each dimension; there are points ** dim nodes.

    Returns:
      The rule, ``(key, dim) -> (nodes, weights)``.

    Raises:
      ValueError: for fewer than one point, and when it is used for more than 200 000 nodes.
    """
    check_least(points=points)
    return GaussHermite(points)


def monte_carlo(draws: int) -> MonteCarlo:
    r"""Independent draws of equal weight.

    .. math:: E[f(u)] \approx \frac{1}{n} \sum_i f(u_i), \qquad u_i \sim N(0, I)

    Args:
      draws: n.

    Returns:
      The rule, ``(key, dim) -> (nodes, weights)``.

    Raises:
      ValueError: for fewer than one draw.
    """
    check_least(draws=draws)
    return MonteCarlo(draws)
