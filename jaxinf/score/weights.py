"""What an error counts: weights on the squared error of the clean example.

A prediction is a weight too: ``weight=score.v`` counts errors as an unweighted loss on v would, and
``weight=score.preconditioned(d)`` is EDM's.
"""

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Leaf, Scalar, is_concrete, record
from jaxinf.process import Gaussian


@runtime_checkable
class Weight(Protocol):
    """A positive function of time."""

    def weight(self, process: Gaussian, t: Scalar) -> Array:
        """Return what a squared error of 1 in the clean example counts at t."""
        ...


@record
class MinSNR:
    """min(SNR, gamma)."""

    gamma: Leaf

    def weight(self, process: Gaussian, t: Scalar) -> Array:
        """Return min(alpha^2 / sigma^2, gamma)."""
        return jnp.minimum(jnp.square(process.alpha(t) / process.sigma(t)), self.gamma)


@record
class Likelihood:
    """-dSNR/dt / 2, over the density of the times."""

    def weight(self, process: Gaussian, t: Scalar) -> Array:
        """Return -dSNR/dt / 2."""
        return -process.snr_rate(t) / 2


def min_snr(gamma: Scalar = 5.0) -> MinSNR:
    """The min-SNR weight, min(alpha^2 / sigma^2, gamma) on the clean example's squared error.

    Args:
      gamma: the largest weight, positive.

    Returns:
      The weight.

    Raises:
      ValueError: for a gamma that is not positive.

    Reference:
      Efficient Diffusion Training via Min-SNR Weighting Strategy, Hang et al., 2023, equation 8.
    """
    if is_concrete(gamma) and not float(gamma) > 0:
        raise ValueError(f"gamma must be positive, got {gamma}; the paper's is 5")
    return MinSNR(gamma)


def likelihood() -> Likelihood:
    """The weight under which the loss is the variational bound's diffusion term, per dimension.

    -dSNR/dt / 2 on the squared error of the clean example, divided by the density of the times: the
    expected loss is 1/2 int -SNR'(t) E|x_0 - D(x_t, t)|^2 dt over the times that their law reaches,
    whatever it is. ``uniform`` and ``log_uniform`` reach the whole range; normal laws reach from
    their quantile at 1e-6 to the one at 1 - 1e-6.

    Returns:
      The weight.

    Reference:
      Variational Diffusion Models, Kingma et al., 2021, equation 17.
    """
    return Likelihood()
