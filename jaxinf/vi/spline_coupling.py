"""Coupling layers of monotone splines."""

from typing import Any

from jaxinf.core import Key
from jaxinf.vi.coupling import Coupling, coupling
from jaxinf.vi.families import mean_field
from jaxinf.vi.flow_family import Flow, flow
from jaxinf.vi.spline import spline
from jaxinf.vi.stacked import stacked


def spline_coupling(
    key: Key, dim: int, *, bins: int = 8, limit: float = 5.0, **options: Any
) -> Coupling:
    r"""A coupling layer whose numbers go through monotone rational-quadratic splines.

    .. math:: z_{\le k} = u_{\le k}, \qquad z_i = g_{\theta_i(u_{\le k})}(u_i)

    Args:
      key: a typed key.
      dim: how many numbers.
      bins: of each spline g, see :func:`spline`.
      limit: outside [-limit, limit] numbers stay.
      options: ``keep``, ``width`` and ``depth`` of :func:`coupling`.

    Returns:
      The bijection, at the start the identity; its inverse is exact.

    Raises:
      ValueError: see :func:`coupling` and :func:`spline`.

    Reference:
      C. Durkan, A. Bekasov, I. Murray and G. Papamakarios, "Neural Spline Flows" (2019), section 3.
    """
    return coupling(key, dim, spline(bins, limit), **options)


def spline_coupling_flow(
    key: Key,
    dim: int,
    layers: int = 4,
    *,
    width: int = 32,
    depth: int = 2,
    bins: int = 8,
    limit: float = 5.0,
) -> Flow:
    """A Gaussian of independent numbers carried through spline couplings of alternating halves.

    Args:
      key: a typed key.
      dim: how many numbers.
      layers: how many couplings.
      width: of the conditioners' hidden layers.
      depth: how many.
      bins: of each spline.
      limit: outside [-limit, limit] a layer leaves numbers as they are.

    Returns:
      The family; it starts at N(0, I).

    Raises:
      ValueError: for a dimension below 2, fewer than one layer, fewer than 2 bins and sizes below
        1.

    Reference:
      C. Durkan, A. Bekasov, I. Murray and G. Papamakarios, "Neural Spline Flows" (2019).
    """

    def make(key: Key) -> Coupling:
        return spline_coupling(key, dim, bins=bins, limit=limit, width=width, depth=depth)

    return flow(mean_field(dim), stacked(key, make, layers, reverse=True))
