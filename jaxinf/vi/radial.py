"""Radial flows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, record
from jaxinf.vi.checks import check_least
from jaxinf.vi.families import mean_field
from jaxinf.vi.flow_family import Flow, flow
from jaxinf.vi.planar import NEUTRAL
from jaxinf.vi.stacked import stacked


@record
class Radial:
    """A radial layer; see :func:`radial`."""

    centre: Leaf
    log_alpha: Leaf
    beta: Leaf
    """Before the constraint."""

    @property
    def dim(self) -> int:
        """How many numbers it moves."""
        return self.centre.shape[-1]

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and the log of the determinant of dz / du."""
        alpha, beta = self._constrained()
        apart = u - self.centre
        h = 1 / (alpha + _norm(apart))
        across, along = jnp.log1p(beta * h), jnp.log1p(beta * alpha * h * h)
        return u + beta * h * apart, (self.dim - 1) * across + along

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u; its distance r from the centre solves r^2 + (alpha + beta - R) r = alpha R."""
        alpha, beta = self._constrained()
        apart = z - self.centre
        far = _norm(apart)
        b = far - (alpha + beta)
        root = jnp.sqrt(b * b + 4 * alpha * far)
        # of the two forms of the root the one without a difference of near numbers
        r = jnp.where(b > 0, (root + b) / 2, 2 * alpha * far / (root + jnp.abs(b)))
        return self.centre + apart / (1 + beta / (alpha + r))

    def _constrained(self) -> tuple[Array, Array]:
        """Return alpha > 0 and beta > -alpha."""
        alpha = jnp.exp(self.log_alpha)
        return alpha, jax.nn.softplus(self.beta) - alpha


def _norm(x: Array) -> Array:
    """Return a length whose derivative at zero is zero."""
    square = jnp.sum(jnp.square(x))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def radial(key: Key, dim: int) -> Radial:
    r"""A radial layer, which draws numbers towards a centre or drives them away.

    .. math:: z = u + \beta h (u - z_0), \quad h = \frac{1}{\alpha + r}, \quad r = \|u - z_0\|,
        \qquad \left|\det \frac{\partial z}{\partial u}\right| =
        (1 + \beta h)^{d-1} (1 + \beta h - \beta r h^2)

    where :math:`\beta = -\alpha + \log(1 + e^{\beta'})` exceeds :math:`-\alpha`.

    Args:
      key: a typed key, of the centre.
      dim: how many numbers.

    Returns:
      The bijection, at the start the identity. The distance from the centre solves a quadratic
      equation, so that the inverse is exact.

    Raises:
      ValueError: for a dimension below 1.

    Reference:
      D. J. Rezende and S. Mohamed, "Variational Inference with Normalizing Flows" (2015), eq. 14
      and appendix A.2.
    """
    check_least(dim=dim)
    return Radial(jax.random.normal(key, (dim,)), jnp.zeros(()), jnp.full((), NEUTRAL))


def radial_flow(key: Key, dim: int, layers: int = 8) -> Flow:
    """A Gaussian of independent numbers carried through radial layers.

    Args:
      key: a typed key.
      dim: how many numbers.
      layers: how many.

    Returns:
      The family; it starts at N(0, I).

    Raises:
      ValueError: for a dimension below 1 and fewer than one layer.

    Reference:
      D. J. Rezende and S. Mohamed, "Variational Inference with Normalizing Flows" (2015), eq. 14.
    """
    return flow(mean_field(dim), stacked(key, lambda key: radial(key, dim), layers))
