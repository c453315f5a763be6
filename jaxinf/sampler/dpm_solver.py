"""DPM-Solver++: polynomials of the clean example in the log-SNR."""

from jaxinf.core import Scalar
from jaxinf.process import Gaussian
from jaxinf.sampler.exponential import Exponential, exponential
from jaxinf.sampler.single_step import SingleStep, single_step


def dpm_solver(process: Gaussian, order: int = 2, eta: Scalar = 0.0) -> Exponential:
    """DPM-Solver++ (multistep), one call of the denoiser a step.

    Order 1 is DDIM; order 2 takes half of the difference of two predictions, as in algorithm 2 of
    the paper; order 3 integrates the parabola through three. Published codes of the third order
    drop a factor 2 in its second difference and are of second order.

    Args:
      process: the Gaussian process to reverse.
      order: 1, 2 or 3.
      eta: amount of noise; 1 is the paper's SDE-DPM-Solver++.

    Returns:
      The stepper.

    Raises:
      ValueError: for another order.

    Reference:
      DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, Lu et al.,
      2022, equations 8 to 10 and section 5.
    """
    if order not in (1, 2, 3):
        raise ValueError(
            f"DPM-Solver++ has orders 1, 2 and 3, got {order}; sampler.exponential takes any"
        )
    return exponential(process, order, pair="B2", eta=eta)


def dpm_solver_single(process: Gaussian, order: int = 2) -> SingleStep:
    """DPM-Solver++ (single-step): ``order`` calls of the denoiser a step, and no history.

    Args:
      process: the Gaussian process to reverse.
      order: 1, 2 or 3.

    Returns:
      The stepper.

    Raises:
      ValueError: for another order.

    Reference:
      DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, Lu et al.,
      2022, algorithm 1 with its intermediate time in the middle of the log-SNR.
    """
    return single_step(process, order, pair="B2")
