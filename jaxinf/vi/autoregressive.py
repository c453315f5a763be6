"""Masked autoregressive layers."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, carry, record, static
from jaxinf.vi.affine_coupling import affine
from jaxinf.vi.checks import check_least
from jaxinf.vi.coupling import Elementwise, check_shape
from jaxinf.vi.families import mean_field
from jaxinf.vi.flow_family import Flow, flow
from jaxinf.vi.perceptron import perceptron
from jaxinf.vi.stacked import stacked


@record
class Autoregressive:
    """A masked autoregressive layer; see :func:`autoregressive`."""

    conditioner: Leaf
    """A perceptron whose weights are masked where it is used."""
    elementwise: Leaf
    dim: int = static()

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and the log of the determinant of dz / du, in one pass."""
        check_shape(self.dim, u)
        z, log_slopes = jax.vmap(self.elementwise.forward)(self._params(self._masked(), u), u)
        return z, jnp.sum(log_slopes)

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u, one number after another."""
        return self.pull(z)[0]

    def pull(self, z: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return u, and the log-determinant of dz / du there."""
        check_shape(self.dim, z)
        masked = self._masked()

        def put(held: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
            u, total = held
            params = self._params(masked, u)[i]  # they depend on what is put already
            x, log_slope = self.elementwise.pull(params, z[i])
            return (u.at[i].set(x), total + log_slope), None

        start = jnp.zeros_like(z), carry(z, 0.0)
        return jax.lax.scan(put, start, jnp.arange(self.dim))[0]

    def _masked(self) -> Leaf:
        """Return the conditioner with what would look ahead set to zero."""
        weights = self.conditioner.weights
        widths = [weight.shape[1] for weight in weights[:-1]]
        masks = masks_of(self.dim, widths, self.elementwise.size)
        held = tuple(
            jnp.where(mask, weight, 0.0) for mask, weight in zip(masks, weights, strict=True)
        )
        return dataclasses.replace(self.conditioner, weights=held)

    def _params(self, masked: Leaf, u: Array) -> Array:
        """Return the parameters of each number, (dim, size)."""
        return masked(u).reshape(self.dim, -1)


def masks_of(dim: int, widths: list[int], size: int) -> list[np.ndarray]:
    """Return which weights of a perceptron let its outputs depend on earlier inputs alone."""
    degrees = [np.arange(dim), *(np.arange(width) % max(dim - 1, 1) for width in widths)]
    masks = [a[:, None] <= b[None] for a, b in itertools.pairwise(degrees)]
    outputs = np.repeat(np.arange(dim), size)
    return [*masks, degrees[-1][:, None] < outputs[None]]


def autoregressive(
    key: Key,
    dim: int,
    *,
    elementwise: Elementwise | None = None,
    width: int = 32,
    depth: int = 2,
) -> Autoregressive:
    r"""A masked autoregressive layer: each number is moved as those before it say.

    .. math:: z_i = f(u_i; \theta_i(u_{<i})), \qquad
        \log\left|\det \frac{\partial z}{\partial u}\right| =
        \sum_i \log \frac{\partial f}{\partial u_i}

    Forward is one pass of the network, the inverse one pass a number: an inverse autoregressive
    layer, as a bound's draws need it. :func:`inverted` of it is a masked autoregressive layer,
    whose density is one pass.

    Args:
      key: a typed key, of the conditioner's weights.
      dim: how many numbers.
      elementwise: f, an increasing map of one number; :func:`affine` by default.
      width: of the masked hidden layers, at least dim - 1, so that no number is left out.
      depth: how many.

    Returns:
      The bijection, at the start the identity; its inverse is exact.

    Raises:
      ValueError: for sizes below 1, and hidden layers that are narrower than dim - 1.

    Reference:
      D. P. Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow" (2016),
      eqs. 8 to 10; G. Papamakarios, T. Pavlakou and I. Murray, "Masked Autoregressive Flow for
      Density Estimation" (2017), eqs. 2 to 5; masks as in M. Germain et al., "MADE" (2015), eqs. 12
      and 13. The affine map is z = u e^s + t rather than the former's sigmoid gates.
    """
    check_least(dim=dim)
    if width < dim - 1:
        raise ValueError(
            f"width must be at least dim - 1 = {dim - 1}, got {width}: numbers would be left out."
        )
    elementwise = affine() if elementwise is None else elementwise
    conditioner = perceptron(key, dim, dim * elementwise.size, width=width, depth=depth)
    return Autoregressive(conditioner, elementwise, dim)


def autoregressive_flow(
    key: Key,
    dim: int,
    layers: int = 4,
    *,
    elementwise: Elementwise | None = None,
    width: int = 32,
    depth: int = 2,
) -> Flow:
    """A Gaussian of independent numbers carried through autoregressive layers of turning order.

    Args:
      key: a typed key.
      dim: how many numbers.
      layers: how many.
      elementwise: of each number, :func:`affine` by default.
      width: of the masked hidden layers.
      depth: how many.

    Returns:
      The family, whose draws are one pass a layer; it starts at N(0, I).

    Raises:
      ValueError: for sizes below 1, and hidden layers that are narrower than dim - 1.

    Reference:
      D. P. Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow" (2016).
    """

    def make(key: Key) -> Autoregressive:
        return autoregressive(key, dim, elementwise=elementwise, width=width, depth=depth)

    return flow(mean_field(dim), stacked(key, make, layers, reverse=True))
