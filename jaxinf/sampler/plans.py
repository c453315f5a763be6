"""More plans: equal steps of log-SNR or of angle, powers, the last times of equal blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf.core import Scalar, concretely
from jaxinf.process import Gaussian
from jaxinf.process.inverse import time_of
from jaxinf.sampler.plan import Plan, _check_steps, plan


@jax.jit
def _times_of(process: Gaussian, log_snr: Any) -> Any:
    return jax.vmap(time_of, (None, 0))(process, log_snr)


def _host_times(process: Gaussian, log_snr: np.ndarray) -> np.ndarray:
    """Return the times of log-SNRs, in float64 on the host."""
    with concretely(), jax.enable_x64(True):
        return np.asarray(_times_of(process, jnp.asarray(log_snr)), np.float64)


def _scales(process: Gaussian, t: Scalar) -> tuple[float, float]:
    """Return (alpha, sigma) at t, in float64 on the host."""
    with concretely(), jax.enable_x64(True):
        t = jnp.asarray(float(t))
        return float(process.alpha(t)), float(process.sigma(t))


def _check_end(process: Gaussian, end: Scalar) -> None:
    if not 0 <= float(end) < float(process.t_max):
        raise ValueError(
            f"end must be in [0, t_max={float(process.t_max):.6g}), got {float(end):.6g}; 0 is the "
            "data, process.t_min the earliest time with a density"
        )


def uniform_log_snr(process: Gaussian, steps: int, end: Scalar = 0.0) -> Plan:
    """Equal steps of the log signal-to-noise ratio, the grid of the exponential integrators.

    log-SNR(t_i) = log-SNR(t_max) + i / n (log-SNR(t_n) - log-SNR(t_max)), where t_n is the later of
    t_min and ``end``; then a last step to ``end`` if that is earlier, since the ratio is infinite
    at 0.

    Args:
      process: the process, with alpha(t_max) > 0.
      steps: how many in all, at least 1 (at least 2 where the last one leaves t_min).
      end: the last time, 0 or ``process.t_min``.

    Returns:
      The plan.

    Raises:
      ValueError: for steps < 1, an end outside the process's range, or alpha(t_max) = 0, where the
        ratio has no logarithm.

    Reference:
      DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps,
      Lu et al., 2022, section 3.4.
    """
    _check_steps(steps)
    _check_end(process, end)
    first, last = float(process.t_max), max(float(process.t_min), float(end))
    closing = [float(end)] if float(end) < last else []
    (alpha, sigma), (alpha_last, sigma_last) = _scales(process, first), _scales(process, last)
    if alpha <= 1e-6 * sigma:
        raise ValueError(
            f"equal steps of log-SNR need alpha(t_max) > 0, and it is {alpha:.3g} at t={first:.6g};"
            " end the schedule earlier (process.cosine(t_max=0.99)) or take sampler.cosine, whose "
            "angle is finite there"
        )
    count = steps - len(closing)
    if count == 0:
        return plan(process, [first, *closing])
    ends = 2 * np.log(alpha / sigma), 2 * np.log(alpha_last / sigma_last)
    inner = _host_times(process, np.linspace(*ends, count + 1)[1:-1])
    return plan(process, np.concatenate([[first], inner, [last], closing]))


def cosine(process: Gaussian, steps: int, end: Scalar = 0.0) -> Plan:
    """Equal steps of the angle arctan(sigma / alpha), which is finite at both ends.

    angle(t_i) = angle(t_max) + i / steps (angle(end) - angle(t_max)); on ``process.cosine()`` these
    are equal steps of time, and on any other process the times at which a cosine schedule has the
    same signal-to-noise ratios.

    Args:
      process: the process.
      steps: how many, at least 1.
      end: the last time; 0, or ``process.t_min`` where a density at the end is needed.

    Returns:
      The plan.

    Raises:
      ValueError: for steps < 1 or an end outside the process's range.
    """
    _check_steps(steps)
    _check_end(process, end)
    first, last = (np.arctan2(*_scales(process, t)[::-1]) for t in (process.t_max, end))
    inner = np.linspace(first, last, steps + 1)[1:-1]
    times = _host_times(process, -2 * np.log(np.tan(inner)))
    return plan(process, [float(process.t_max), *times, float(end)])


def polynomial(process: Gaussian, steps: int, power: Scalar = 2.0, end: Scalar = 0.0) -> Plan:
    """Steps that shorten towards the data as a power.

    t_i = end + (t_max - end) (1 - i / steps)^power; 1 is ``uniform``, 2 is DDIM's quadratic grid.

    Args:
      process: the process.
      steps: how many, at least 1.
      power: positive.
      end: the last time; 0, or ``process.t_min`` where a density at the end is needed.

    Returns:
      The plan.

    Raises:
      ValueError: for steps < 1, a power that is not positive, or an end outside the range.

    Reference:
      Denoising Diffusion Implicit Models, Song et al., 2021, appendix D.2.
    """
    _check_steps(steps)
    _check_end(process, end)
    power, end = float(power), float(end)
    if not power > 0:
        raise ValueError(f"power must be positive, got {power}; 2 is DDIM's, 1 is sampler.uniform")
    left = np.linspace(1.0, 0.0, steps + 1)
    return plan(process, end + (float(process.t_max) - end) * left**power)


def trailing(process: Gaussian, steps: int, of: int = 1000, end: Scalar = 0.0) -> Plan:
    """The last times of equal blocks of a discrete grid, then a step to ``end``.

    t_i = t_max round(of - i of / steps) / of for i < steps. It holds the grid's last time, where
    the noise is all there is, and only times at which a network trained on the grid has been.

    Args:
      process: the process, with the grid's step k at k t_max / of.
      steps: how many, from 1 to ``of``.
      of: steps of the grid.
      end: the last time, before the grid's last one that is visited; 0 is the data.

    Returns:
      The plan.

    Raises:
      ValueError: for steps outside 1 ... of, or an end that is not earlier than the rest.

    Reference:
      Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024, table 2.
    """
    _check_steps(steps)
    _check_end(process, end)
    if steps > of:
        raise ValueError(f"a grid of {of} steps has no {steps} blocks; steps must be 1 ... {of}")
    grid = np.round(of - np.arange(steps) * (of / steps))
    return plan(process, [*(grid / of * float(process.t_max)), float(end)])
