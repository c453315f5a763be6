"""Coupling layers of monotone splines."""

from jaxinf.core import Key
from jaxinf.vi.coupling import Coupling, coupling, coupling_flow
from jaxinf.vi.flow_family import Flow
from jaxinf.vi.spline import spline


def spline_coupling(
    key: Key, dim: int, *, bins: int = 8, limit: float = 5.0, keep: int | None = None,
    width: int = 32, depth: int = 2,
) -> Coupling:  # fmt: skip
    r"""A coupling layer whose numbers go through monotone rational-quadratic splines.

    .. math:: z_{\le k} = u_{\le k}, \qquad z_i = g_{\theta_i(u_{\le k})}(u_i)

    Args:
      key: a typed key.
      dim: how many numbers.
      bins: of each spline g, see :func:`spline`.
      limit: outside [-limit, limit] numbers stay.
      keep: how many numbers stay, see :func:`coupling`.
      width: of the conditioner's hidden layers.
      depth: how many.

    Returns:
      The bijection, at the start the identity; its inverse is exact.

    Raises:
      ValueError: see :func:`coupling` and :func:`spline`.

    Reference:
      C. Durkan, A. Bekasov, I. Murray and G. Papamakarios, "Neural Spline Flows" (2019), section 3.
    """
    return coupling(key, dim, spline(bins, limit), keep=keep, width=width, depth=depth)


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
    return coupling_flow(key, dim, layers, spline(bins, limit), width=width, depth=depth)
