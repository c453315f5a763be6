"""Pseudoinverse guidance: an isotropic covariance of the clean example."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Leaf, Scalar, is_concrete, record
from jaxinf.guide.belief import Apply, Belief, ConjugateGradients, Dense
from jaxinf.guide.conditioned import View


@record
class Isotropic:
    """N(D, r^2 C) with r^2 = sigma^2 d^2 / (alpha^2 d^2 + sigma^2)."""

    data_scale: Leaf
    solve: Leaf

    def view(self, process: Any, x: Array, t: Scalar, mean: Array, tweedie: Apply) -> View:
        """Return what is believed at (x, t)."""
        alpha, sigma = process.alpha(t) * self.data_scale, process.sigma(t)
        r = jnp.square(sigma * self.data_scale) / (jnp.square(alpha) + jnp.square(sigma))

        def covariance(v: Array) -> Array:
            return (r * process.covariance.matvec(v)).astype(v.dtype)

        return View(Belief(mean, covariance, self.solve), tweedie)


def pigdm(data_scale: Scalar = 1.0, iterations: int | None = None) -> Isotropic:
    r"""Pseudoinverse-guided diffusion: p(x_0 | x_t) with the covariance of isotropic data.

    .. math:: \nabla \log p(y \mid x_t) \approx J^\top A^\top
              (\Sigma_y + r_t^2 A C A^\top)^{-1} (y - A D), \quad
              r_t^2 = \frac{\sigma^2 d^2}{\alpha^2 d^2 + \sigma^2}

    Args:
      data_scale: d, the data's standard deviation; the paper's is 1.
      iterations: of conjugate gradients; None solves in full.

    Returns:
      The method; the paper multiplies the gradient by r_t^2 in its DDIM step, a step length of its
      own, which is left out.

    Raises:
      ValueError: for a data_scale that is not positive.

    Reference:
      Pseudoinverse-Guided Diffusion Models for Inverse Problems, Song et al., 2023, equations 6
      to 8 and appendix A.
    """
    if is_concrete(data_scale) and not float(data_scale) > 0:
        raise ValueError(f"data_scale must be positive, got {data_scale}; 1 is the paper's")
    return Isotropic(data_scale, Dense() if iterations is None else ConjugateGradients(iterations))
