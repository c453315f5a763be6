"""Adams and Bashforth's methods on the angle of signal and noise."""

from jaxinf.core import Scalar
from jaxinf.process import Gaussian, preconditioned
from jaxinf.sampler.coefficients import angle
from jaxinf.sampler.exponential import Exponential, exponential


def adams_bashforth(process: Gaussian, order: int = 3, data_scale: Scalar = 1.0) -> Exponential:
    """The classical multistep method on du / dtheta = -F, F the preconditioned output.

    theta = arctan(sigma / alpha) is finite at both ends; at data scale 1 and a
    variance-preserving schedule F is -v.

    Args:
      process: the Gaussian process to reverse.
      order: how many values are used, at least 1.
      data_scale: standard deviation of the data, positive.

    Returns:
      The stepper.

    Reference:
      Numerical Solution of Ordinary Differential Equations, Butcher, 2016, section 24.
    """
    return exponential(process, order, predicts=preconditioned(data_scale), variable=angle)
