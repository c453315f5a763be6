"""Plans: the sequence of times that a driver walks, from noise to data."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Float

from jaxinf.core import Leaf, Scalar, record, static
from jaxinf.process import Gaussian
from jaxinf.sampler.stepper import AnyStepper


@record
class Plan:
    """Times t_0, t_1, ..., t_N; step i goes from t_i to t_{i+1}.

    Where t_{i+1} is the later one (only a ``restart`` makes such plans) the step is the process's
    forward transition, which calls no denoiser.
    """

    times: Leaf
    rises: bool = static(default=False)

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return self.times.shape[0] - 1

    def calls(self, stepper: AnyStepper) -> int:
        """How often a stepper calls the denoiser along this plan, for each sample."""
        times = np.asarray(self.times, np.float64)
        return sum(stepper.calls(t, s) for t, s in itertools.pairwise(times) if s < t)


def plan(process: Gaussian, times: Float[ArrayLike, " n"] | Sequence[float]) -> Plan:
    """A plan from its times.

    Args:
      process: the process that the times belong to.
      times: t_0 > ... > t_N, at least two, within [0, process.t_max].

    Returns:
      The plan; the times are kept in float64 on the host.

    Raises:
      ValueError: for fewer than two times, times that do not fall, or times outside the range.
    """
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(
            f"a plan needs at least one step, that is a vector of two times or more; got shape "
            f"{times.shape}"
        )
    latest = float(process.t_max)
    tolerance = 1e-6 * latest
    if not np.all((times >= 0) & (times <= latest + tolerance)):
        worst = times[np.argmax(np.where(np.isfinite(times), np.abs(times - latest / 2), np.inf))]
        raise ValueError(
            f"the plan leaves the process's range [0, {latest:.6g}]: it has t={worst:.6g}; clip "
            "its times, or give the schedule another t_max"
        )
    falls = np.diff(times) < 0
    if not falls.all():
        i = int(np.argmin(falls))
        raise ValueError(
            f"a plan's times must fall from noise to data, and step {i} goes from t={times[i]:.6g} "
            f"to t={times[i + 1]:.6g}; np.sort(times)[::-1] orders them"
        )
    return Plan(np.minimum(times, latest))


def _check_steps(steps: int) -> None:
    if not (isinstance(steps, int | np.integer) and steps >= 1):
        raise ValueError(f"steps must be a whole number, at least 1, got {steps!r}")


def uniform(process: Gaussian, steps: int, end: Scalar = 0.0) -> Plan:
    """Equal steps in time from ``process.t_max`` to ``end``, both included.

    t_i = t_max + i (end - t_max) / steps. Because it starts at the last time it is what 'Common
    Diffusion Noise Schedules and Sample Steps are Flawed' (Lin et al., 2024, table 2) calls
    trailing.

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
    return plan(process, np.linspace(float(process.t_max), float(end), steps + 1))


def karras(process: Gaussian, steps: int, rho: Scalar = 7.0, end: Scalar = 0.0) -> Plan:
    """Power-law steps that shorten towards the data, as EDM's.

    t_i = (t_max^(1/rho) + i / (n - 1) (t_min^(1/rho) - t_max^(1/rho)))^rho for i < n, then a last
    step from t_min to ``end`` if that is earlier.

    Args:
      process: the process; its t_min and t_max are EDM's sigma_min and sigma_max.
      steps: how many in all, at least 1 (at least 2 where the last one leaves t_min).
      rho: the power, positive; 1 gives equal steps.
      end: the last time, 0 or ``process.t_min``.

    Returns:
      The plan.

    Raises:
      ValueError: for steps < 1 or a power that is not positive.

    Reference:
      Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al., 2022,
      equation 5.
    """
    _check_steps(steps)
    rho = float(rho)
    if not rho > 0:
        raise ValueError(f"rho must be positive, got {rho}; EDM's is 7")
    first, last = float(process.t_max), max(float(process.t_min), float(end))
    closing = [float(end)] if float(end) < last else []
    ramp = np.linspace(first ** (1 / rho), last ** (1 / rho), steps + 1 - len(closing)) ** rho
    ramp[0], ramp[-1] = first, last if ramp.size > 1 else first
    return plan(process, np.concatenate([ramp, closing]))
