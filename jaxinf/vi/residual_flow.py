"""Invertible residual layers."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, record, static
from jaxinf.vi.checks import check_least
from jaxinf.vi.coupling import check_shape
from jaxinf.vi.families import mean_field
from jaxinf.vi.flow_family import Flow, flow
from jaxinf.vi.perceptron import perceptron
from jaxinf.vi.stacked import stacked


def lipswish(x: Array) -> Array:
    """Return x sigmoid(x) / 1.1, whose slope is at most one."""
    return jax.nn.silu(x) / 1.1


@record
class Residual:
    """An invertible residual layer; see :func:`residual`."""

    network: Leaf
    """A perceptron whose weights are scaled down where it is used."""
    dim: int = static()
    bound: float = static()

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and the log of the determinant of dz / du."""
        check_shape(self.dim, u)
        network = self._bounded()
        jacobian = jax.jacfwd(network)(u) + jnp.eye(self.dim, dtype=u.dtype)
        return u + network(u), jnp.linalg.slogdet(jacobian)[1]

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u, by iterating u <- z - g(u) until it stands."""
        check_shape(self.dim, z)
        network = self._bounded()

        def apart(u: Array) -> Array:
            return u + network(u) - z

        def solve(apart: Any, start: Array) -> Array:
            eps = float(jnp.finfo(start.dtype).eps)
            most = math.ceil(math.log(eps) / math.log(self.bound))

            def unfinished(held: tuple[Array, Array, Array]) -> Array:
                u, moved, count = held
                # what is left is at most c / (1 - c) times the last step
                return (count < most) & jnp.any(moved > eps * (1 + jnp.abs(u)))

            def step(held: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                u, _, count = held
                change = apart(u)
                return u - change, jnp.abs(change), count + 1

            held = start, jnp.full_like(start, jnp.inf), jnp.asarray(0)
            return jax.lax.while_loop(unfinished, step, held)[0]

        return jax.lax.custom_root(apart, z, solve, _solve)

    def _bounded(self) -> Leaf:
        """Return the network, each weight of a spectral norm that makes the whole a contraction."""
        share = self.bound ** (1 / len(self.network.weights))
        weights = tuple(
            weight / jnp.maximum(1.0, jnp.linalg.norm(weight, 2) / share)
            for weight in self.network.weights
        )
        return dataclasses.replace(self.network, weights=weights)


def _solve(linear: Any, y: Array) -> Array:
    """Return x of linear(x) = y."""
    return jnp.linalg.solve(jax.jacfwd(linear)(jnp.zeros_like(y)), y)


def residual(
    key: Key, dim: int, *, width: int = 32, depth: int = 2, bound: float = 0.9
) -> Residual:
    r"""An invertible residual layer, a contraction added to the identity.

    .. math:: z = u + g(u), \quad \mathrm{Lip}(g) \le c < 1, \qquad
        \log\left|\det \frac{\partial z}{\partial u}\right| =
        \log\det\left(I + \frac{\partial g}{\partial u}\right)

    Each weight of g is divided by what its spectral norm exceeds :math:`c^{1/L}` by, for L weights,
    and activations have slopes of at most one.

    Args:
      key: a typed key.
      dim: how many numbers. The determinant is exact, by dim directional derivatives and a
        factorisation of order dim cubed: for tens of numbers rather than for images.
      width: of the hidden layers.
      depth: how many.
      bound: c. An inverse takes at most log(eps) / log(c) iterations.

    Returns:
      The bijection, at the start the identity. The inverse is the fixed point of
      :math:`u \leftarrow z - g(u)`, differentiated by the implicit function theorem.

    Raises:
      ValueError: for sizes below 1, and a bound that is not between 0 and 1.

    Reference:
      J. Behrmann et al., "Invertible Residual Networks" (2019), theorem 1, algorithm 1 and eq. 2;
      activations as in R. T. Q. Chen et al., "Residual Flows for Invertible Generative Modeling"
      (2019), section 3.3. Deviations: spectral norms and determinants are exact, where the papers
      have power iterations and an estimated power series.
    """
    check_least(dim=dim)
    if not 0 < bound < 1:
        raise ValueError(f"bound must lie between 0 and 1, got {bound}.")
    network = perceptron(key, dim, dim, width=width, depth=depth, activation=lipswish)
    return Residual(network, dim, float(bound))


def residual_flow(
    key: Key, dim: int, layers: int = 8, *, width: int = 32, depth: int = 2, bound: float = 0.9
) -> Flow:
    """A Gaussian of independent numbers carried through invertible residual layers.

    Args:
      key: a typed key.
      dim: how many numbers.
      layers: how many.
      width: of the hidden layers.
      depth: how many.
      bound: of each layer's Lipschitz constant.

    Returns:
      The family; it starts at N(0, I).

    Raises:
      ValueError: for sizes below 1, and a bound that is not between 0 and 1.

    Reference:
      J. Behrmann et al., "Invertible Residual Networks" (2019).
    """

    def make(key: Key) -> Residual:
        return residual(key, dim, width=width, depth=depth, bound=bound)

    return flow(mean_field(dim), stacked(key, make, layers))
