"""Planar flows."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, record
from jaxinf.vi.checks import check_least
from jaxinf.vi.families import mean_field
from jaxinf.vi.flow_family import Flow, flow
from jaxinf.vi.stacked import stacked

NEUTRAL = math.log(math.e - 1)
"""Where softplus is one."""


@record
class Planar:
    """A planar layer; see :func:`planar`."""

    u: Leaf
    """Before the constraint, (dim,)."""
    w: Leaf
    b: Leaf

    @property
    def dim(self) -> int:
        """How many numbers it moves."""
        return self.w.shape[-1]

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and the log of the determinant of dz / du."""
        shift, above = self._shift()
        h = jnp.tanh(self.w @ u + self.b)
        # 1 + w . shift (1 - h^2) as a sum of two numbers that are not negative
        return u + shift * h, jnp.log(h * h + above * (1 - h * h))

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u, by bisection along w: w . u lies within |w . shift| of w . z."""
        shift, above = self._shift()
        along = above - 1
        goal = self.w @ z + self.b

        def apart(a: Array) -> Array:
            return a + along * jnp.tanh(a) - goal

        def solve(apart: Any, start: Array) -> Array:
            def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
                middle = (ends[0] + ends[1]) / 2
                above = apart(middle) > 0
                return jnp.where(above, ends[0], middle), jnp.where(above, middle, ends[1])

            reach = jnp.abs(along)
            # the last bits of a bracket as wide as the shift are rounding's
            halvings = jnp.finfo(start.dtype).nmant + 4
            ends = start - reach, start + reach
            low, high = jax.lax.fori_loop(0, halvings, halve, ends)
            return (low + high) / 2

        a = jax.lax.custom_root(apart, goal, solve, lambda slope, y: y / slope(jnp.ones_like(y)))
        return z - shift * jnp.tanh(a)

    def _shift(self) -> tuple[Array, Array]:
        """Return the shift that keeps the layer invertible, and 1 + w . shift > 0."""
        inner = self.w @ self.u
        above = jax.nn.softplus(inner)
        return self.u + (above - 1 - inner) * self.w / jnp.sum(jnp.square(self.w)), above


def planar(key: Key, dim: int) -> Planar:
    r"""A planar layer, which moves numbers along one direction by where they lie along another.

    .. math:: z = u + \hat u \tanh(w^T u + b), \qquad
        \left|\det \partial z / \partial u\right| = 1 + \hat u^T w (1 - \tanh^2(w^T u + b))

    where :math:`\hat u = u' + (m(w^T u') - w^T u') w / \|w\|^2` with
    :math:`m(x) = -1 + \log(1 + e^x)` keeps :math:`w^T \hat u > -1`.

    Args:
      key: a typed key, of the direction w.
      dim: how many numbers.

    Returns:
      The bijection, at the start the identity. There is no closed inverse; it is found by
      bisection of :math:`w^T u`, in as many halvings as the numbers have bits, and differentiated
      by the implicit function theorem.

    Raises:
      ValueError: for a dimension below 1.

    Reference:
      D. J. Rezende and S. Mohamed, "Variational Inference with Normalizing Flows" (2015), eqs. 10
      to 12 and appendix A.1.
    """
    check_least(dim=dim)
    w = jax.random.normal(key, (dim,))
    return Planar(NEUTRAL * w / jnp.sum(jnp.square(w)), w, jnp.zeros(()))


def planar_flow(key: Key, dim: int, layers: int = 8) -> Flow:
    r"""A Gaussian of independent numbers carried through planar layers.

    .. math:: \log q_K(z_K) = \log q_0(z_0) - \sum_k \log|1 + \hat u_k^T \psi_k(z_{k-1})|

    Args:
      key: a typed key.
      dim: how many numbers.
      layers: K.

    Returns:
      The family; it starts at N(0, I).

    Raises:
      ValueError: for a dimension below 1 and fewer than one layer.

    Reference:
      D. J. Rezende and S. Mohamed, "Variational Inference with Normalizing Flows" (2015), eq. 13.
    """
    return flow(mean_field(dim), stacked(key, lambda key: planar(key, dim), layers))
