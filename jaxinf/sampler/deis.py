"""DEIS: polynomials of the noise in the noise level."""

from jaxinf.process import Gaussian, eps
from jaxinf.sampler.coefficients import noise_level
from jaxinf.sampler.exponential import Exponential, exponential


def deis(process: Gaussian, order: int = 3) -> Exponential:
    """rhoAB-DEIS: Adams and Bashforth's method on the noise, with rho = sigma / alpha as time.

    Args:
      process: the Gaussian process to reverse, with alpha(t_max) > 0.
      order: how many values are used, at least 1; 1 is DDIM.

    Returns:
      The stepper.

    Reference:
      Fast Sampling of Diffusion Models with Exponential Integrator, Zhang and Chen, 2023,
      proposition 3 and equation 15, in the variable rho of section 4.
    """
    return exponential(process, order, predicts=eps, variable=noise_level)
