"""The clean example as one point: diffusion posterior sampling's approximation."""

from typing import Any

from jaxtyping import Array

from jaxinf.core import Scalar, record
from jaxinf.guide.belief import Apply, Belief
from jaxinf.guide.conditioned import View


@record
class Point:
    """All mass of p(x_0 | x_t) at D."""

    def view(self, process: Any, x: Array, t: Scalar, mean: Array, tweedie: Apply) -> View:
        """Return what is believed at (x, t)."""
        return View(Belief(mean, None, None), tweedie)


def point() -> Point:
    r"""Diffusion posterior sampling's approximation: p(y | x_t) is p(y | x_0 = D(x, t)).

    .. math:: \nabla \log p(y \mid x_t) \approx J^\top \nabla_{x_0} \log p(y \mid x_0 = D)

    For any likelihood with a gradient. The gradient is that of the density; the paper's steps of
    its own length are :func:`guide.dps`.

    Returns:
      The method.

    Reference:
      Diffusion Posterior Sampling for General Noisy Inverse Problems, Chung et al., 2023,
      theorem 1 and equation 11.
    """
    return Point()
