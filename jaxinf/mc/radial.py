"""Radial kernels of particles, k(x, y) = kappa(|x - y|^2), with the derivatives of kappa."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Leaf, Scalar, is_concrete, record


@runtime_checkable
class Radial(Protocol):
    """A radial kernel."""

    def __call__(
        self, squares: Float[Array, "n n"]
    ) -> tuple[Float[Array, "n n"], Float[Array, "n n"], Float[Array, "n n"]]:
        """Return kappa and its first two derivatives at squared distances of all pairs."""
        ...


@record
class RBF:
    """The Gaussian kernel; see :func:`rbf`."""

    bandwidth: Leaf

    def __call__(self, squares: Array) -> tuple[Array, Array, Array]:
        """Return kappa and its first two derivatives."""
        width = self._median(squares) if self.bandwidth is None else self.bandwidth
        k = jnp.exp(-squares / width)
        return k, -k / width, k / jnp.square(width)

    @staticmethod
    def _median(squares: Array) -> Array:
        """Return the median rule's bandwidth; 1 where all particles are one."""
        found = jax.lax.stop_gradient(jnp.median(squares) / jnp.log(len(squares) + 1.0))
        return jnp.where(found > 0, found, 1.0)


@record
class IMQ:
    """The inverse multiquadric kernel; see :func:`imq`."""

    scale: Leaf
    exponent: Leaf

    def __call__(self, squares: Array) -> tuple[Array, Array, Array]:
        """Return kappa and its first two derivatives."""
        base, power = jnp.square(self.scale) + squares, self.exponent
        slope, curve = power * base ** (power - 1), power * (power - 1) * base ** (power - 2)
        return base**power, slope, curve


def rbf(bandwidth: Scalar | None = None) -> RBF:
    r"""The Gaussian kernel.

    .. math:: k(x, y) = e^{-|x - y|^2 / h}

    Args:
      bandwidth: h, in squared units of the particles; by default the median squared distance of
        all n^2 pairs over log(n + 1), as the authors' programs have it, anew at every step, and
        held fixed where the kernel is differentiated.

    Returns:
      A :class:`Radial` kernel.

    Raises:
      ValueError: for a bandwidth that is not positive.

    Reference:
      Q. Liu and D. Wang, "Stein Variational Gradient Descent: A General Purpose Bayesian Inference
      Algorithm", NeurIPS 2016, section 5 (the median rule, in print with log n).
    """
    if bandwidth is not None and is_concrete(bandwidth) and not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}; None takes the median's.")
    return RBF(bandwidth)


def imq(scale: Scalar = 1.0, exponent: Scalar = -0.5) -> IMQ:
    r"""The inverse multiquadric kernel, whose tails are heavy.

    .. math:: k(x, y) = (c^2 + |x - y|^2)^\beta

    Args:
      scale: c, in units of the particles.
      exponent: beta, in (-1, 0).

    Returns:
      A :class:`Radial` kernel.

    Raises:
      ValueError: for a scale that is not positive or an exponent outside (-1, 0).

    Reference:
      J. Gorham and L. Mackey, "Measuring Sample Quality with Kernels", ICML 2017.
    """
    if is_concrete(scale) and not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}; 1 is usual in whitened units.")
    if is_concrete(exponent) and not -1 < exponent < 0:
        raise ValueError(f"exponent must lie in (-1, 0), got {exponent}; -0.5 is usual.")
    return IMQ(scale, exponent)
