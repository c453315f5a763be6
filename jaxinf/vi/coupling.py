"""Layers that move some numbers by what the others say."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, record, static
from jaxinf.vi.families import mean_field
from jaxinf.vi.flow_family import Flow, flow
from jaxinf.vi.perceptron import perceptron
from jaxinf.vi.stacked import stacked


@runtime_checkable
class Elementwise(Protocol):
    """An increasing map of one number with parameters, which is the identity where they are 0."""

    @property
    def size(self) -> int:
        """How many parameters a number has."""
        ...

    def forward(self, params: Float[Array, " size"], x: Float[Array, ""]) -> tuple[Array, Array]:
        """Return y, and log dy / dx."""
        ...

    def pull(self, params: Float[Array, " size"], y: Float[Array, ""]) -> tuple[Array, Array]:
        """Return x, and log dy / dx there."""
        ...


@record
class Coupling:
    """A coupling layer; see :func:`coupling`."""

    conditioner: Leaf
    elementwise: Leaf
    dim: int = static()
    keep: int = static()

    def forward(self, u: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return z, and the log of the determinant of dz / du."""
        return self._move(u, self.elementwise.forward)

    def inverse(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """Return u."""
        return self.pull(z)[0]

    def pull(self, z: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Return u, and the log-determinant of dz / du there."""
        return self._move(z, self.elementwise.pull)

    def _move(self, x: Array, move: Any) -> tuple[Array, Array]:
        """Return x with its last numbers moved, and the sum of log slopes."""
        check_shape(self.dim, x)
        kept, rest = x[: self.keep], x[self.keep :]
        params = self.conditioner(kept).reshape(rest.size, -1)
        moved, log_slopes = jax.vmap(move)(params, rest)
        return jnp.concatenate([kept, moved]), jnp.sum(log_slopes)


def check_shape(dim: int, x: Array) -> None:
    """Raise for an example of another dimension."""
    if x.shape != (dim,):
        raise ValueError(
            f"the bijection moves {dim} numbers, got shape {x.shape}; jax.vmap makes it take a "
            "batch."
        )


def coupling(
    key: Key,
    dim: int,
    elementwise: Elementwise,
    *,
    keep: int | None = None,
    width: int = 32,
    depth: int = 2,
) -> Coupling:
    r"""A coupling layer: the first numbers stay, and say how each of the others is moved.

    .. math:: z_{\le k} = u_{\le k}, \quad z_i = f(u_i; \theta_i(u_{\le k})), \qquad
        \log\left|\det \frac{\partial z}{\partial u}\right| =
        \sum_{i > k} \log \frac{\partial f}{\partial u_i}

    Args:
      key: a typed key, of the conditioner's weights.
      dim: how many numbers.
      elementwise: f, an increasing map of one number.
      keep: k, how many numbers stay; half of them, rounded down, by default. Others come to stay in
        the next layer by the reversals of :func:`stacked` or by :func:`permutation`.
      width: of the conditioner's hidden layers.
      depth: how many.

    Returns:
      The bijection, at the start the identity; its inverse is exact and costs what it costs itself.

    Raises:
      ValueError: for a dimension below 2, of which none could stay, for ``keep`` that is not
        between 1 and dim - 1, and for sizes below 1.

    Reference:
      L. Dinh, J. Sohl-Dickstein and S. Bengio, "Density estimation using Real NVP" (2017), eqs. 4
      to 8; the conditioner is a perceptron, without batch normalisation.
    """
    if dim < 2:
        raise ValueError(
            f"a coupling needs dim of at least 2, one number that stays and one that is moved; got "
            f"{dim}. vi.autoregressive(key, 1) moves one number."
        )
    keep = dim // 2 if keep is None else keep
    if not 1 <= keep < dim:
        raise ValueError(f"keep must lie between 1 and dim - 1 = {dim - 1}, got {keep}.")
    outputs = (dim - keep) * elementwise.size
    conditioner = perceptron(key, keep, outputs, width=width, depth=depth)
    return Coupling(conditioner, elementwise, dim, keep)


def coupling_flow(
    key: Key, dim: int, layers: int, elementwise: Elementwise, *, width: int = 32, depth: int = 2
) -> Flow:
    """A Gaussian of independent numbers carried through couplings of alternating halves.

    Args:
      key: a typed key.
      dim: how many numbers.
      layers: how many couplings.
      elementwise: how each number is moved, :func:`affine` or :func:`spline`.
      width: of the conditioners' hidden layers.
      depth: how many.

    Returns:
      The family; it starts at N(0, I).

    Raises:
      ValueError: for a dimension below 2, fewer than one layer and sizes below 1.
    """

    def make(key: Key) -> Coupling:
        return coupling(key, dim, elementwise, width=width, depth=depth)

    return flow(mean_field(dim), stacked(key, make, layers, reverse=True))
