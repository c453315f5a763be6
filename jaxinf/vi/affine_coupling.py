"""Coupling layers that shift and scale."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, record, static
from jaxinf.vi.coupling import Coupling, coupling, coupling_flow
from jaxinf.vi.flow_family import Flow


@record
class Affine:
    """A shift and a bounded log-scale of one number; see :func:`affine`."""

    limit: float = static()

    @property
    def size(self) -> int:
        """How many parameters a number has."""
        return 2

    def forward(self, params: Float[Array, "2"], x: Float[Array, ""]) -> tuple[Array, Array]:
        """Return y, and log dy / dx."""
        log_scale = self._log_scale(params)
        return x * jnp.exp(log_scale) + params[0], log_scale

    def pull(self, params: Float[Array, "2"], y: Float[Array, ""]) -> tuple[Array, Array]:
        """Return x, and log dy / dx there."""
        log_scale = self._log_scale(params)
        return (y - params[0]) * jnp.exp(-log_scale), log_scale

    def _log_scale(self, params: Array) -> Array:
        return self.limit * jnp.tanh(params[1] / self.limit)


def affine(limit: float = 10.0) -> Affine:
    r"""A shift and a scale of one number.

    .. math:: y = x e^s + t, \qquad s = L \tanh(\theta_2 / L), \quad t = \theta_1

    Args:
      limit: L, which no layer's log-scale exceeds, so that no scale overflows.

    Returns:
      The map, for :func:`coupling` and :func:`autoregressive`; it has no number of its own.

    Raises:
      ValueError: for a limit that is not positive.

    Reference:
      L. Dinh, J. Sohl-Dickstein and S. Bengio, "Density estimation using Real NVP" (2017), eq. 5.
    """
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}.")
    return Affine(float(limit))


def affine_coupling(
    key: Key, dim: int, *, limit: float = 10.0, keep: int | None = None, width: int = 32,
    depth: int = 2,
) -> Coupling:  # fmt: skip
    r"""A coupling layer that shifts and scales, of the real-valued non-volume-preserving flow.

    .. math:: z_{\le k} = u_{\le k}, \qquad
        z_{>k} = u_{>k} \odot e^{s(u_{\le k})} + t(u_{\le k}), \qquad
        \log|\det \partial z / \partial u| = \sum_i s_i

    Args:
      key: a typed key.
      dim: how many numbers.
      limit: of the log-scales, see :func:`affine`.
      keep: how many numbers stay, see :func:`coupling`.
      width: of the conditioner's hidden layers.
      depth: how many.

    Returns:
      The bijection, at the start the identity.

    Raises:
      ValueError: see :func:`coupling` and :func:`affine`.

    Reference:
      L. Dinh, J. Sohl-Dickstein and S. Bengio, "Density estimation using Real NVP" (2017), eqs. 4
      to 8.
    """
    return coupling(key, dim, affine(limit), keep=keep, width=width, depth=depth)


def affine_coupling_flow(
    key: Key, dim: int, layers: int = 8, *, width: int = 32, depth: int = 2, limit: float = 10.0
) -> Flow:
    """A Gaussian of independent numbers carried through affine couplings of alternating halves.

    Args:
      key: a typed key.
      dim: how many numbers.
      layers: how many couplings.
      width: of the conditioners' hidden layers.
      depth: how many.
      limit: of the log-scales.

    Returns:
      The family; it starts at N(0, I).

    Raises:
      ValueError: for a dimension below 2, fewer than one layer and sizes below 1.

    Reference:
      L. Dinh, J. Sohl-Dickstein and S. Bengio, "Density estimation using Real NVP" (2017).
    """
    return coupling_flow(key, dim, layers, affine(limit), width=width, depth=depth)
