"""Restarts: plans that go back to noise and come down again."""

import numpy as np

from jaxinf.core import Scalar, is_concrete
from jaxinf.sampler.plan import Plan


def restart(
    plan: Plan, between: tuple[Scalar, Scalar], times: int, descent: Plan | None = None
) -> Plan:
    """Add restarts to a plan: from ``lo``, add noise up to ``hi`` and walk down again, K times.

    The forward transition forgets what the steps did wrong before: of a Gaussian law N(0, s^2)
    with alpha = 1 an error of the variance is multiplied by (s^2 + lo^2) / (s^2 + hi^2) at each
    restart (lo and hi as noise scales). Several intervals are several calls.

    Args:
      plan: the plan; made outside ``jit``.
      between: (lo, hi), the interval in times, within the plan. lo is taken as the plan's nearest
        time; where that is passed several times, as the last passage.
      times: K, how often, not negative; 0 returns the plan itself.
      descent: the steps from hi to lo, ``sampler.plan(process, np.geomspace(hi, lo, 5))`` say. By
        default the plan's own times in between, with hi taken as the nearest of them.

    Returns:
      The plan; its rises call no denoiser.

    Raises:
      TypeError: for a plan whose times are traced.
      ValueError: for an interval that is empty, leaves the plan, or holds none of its steps; a
        negative K; a descent that does not go from hi to lo.

    Reference:
      Restart Sampling for Improving Generative Processes, Xu et al., 2023, section 3.1.
    """
    if not is_concrete((plan, between, descent)):
        raise TypeError("restart arranges times on the host: make the plan outside jit")
    if not (isinstance(times, int | np.integer) and times >= 0):
        raise ValueError(
            f"times must be a whole number, at least 0, got {times!r}; 0 is the plan itself"
        )
    walked = np.asarray(plan.times, np.float64)
    lo, hi = (float(t) for t in between)
    if not lo < hi:
        raise ValueError(f"between must be (lo, hi) with lo < hi, got ({lo:.6g}, {hi:.6g})")
    tolerance = 1e-6 * walked[0]
    if not (walked.min() - tolerance <= lo and hi <= walked.max() + tolerance):
        raise ValueError(
            f"between must lie within the plan's times [{walked.min():.6g}, {walked.max():.6g}], "
            f"got ({lo:.6g}, {hi:.6g})"
        )
    if times == 0:
        return plan
    foot = walked.size - 1 - int(np.argmin(np.abs(walked - lo)[::-1]))
    if descent is None:
        down = _own_times(walked, walked[foot], hi)
    else:
        down = _given_times(descent, lo, hi, walked[foot], tolerance)
    again = np.concatenate([walked[: foot + 1], *[down] * times, walked[foot + 1 :]])
    return Plan(again, rises=True)


def _own_times(walked: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """Return the plan's times from the one nearest to hi down to lo, which is one of them."""
    distinct = np.unique(walked)
    top = distinct[np.argmin(np.abs(distinct - hi))]
    if not top > lo:
        raise ValueError(
            f"no step of the plan lies between t={lo:.6g} and t={hi:.6g}; pass the steps as "
            "descent=sampler.plan(process, np.geomspace(hi, lo, 5)), or widen the interval"
        )
    return distinct[(distinct >= lo) & (distinct <= top)][::-1]


def _given_times(descent: Plan, lo: float, hi: float, foot: float, tolerance: float) -> np.ndarray:
    """Return a descent's times, the last one replaced by the plan's own."""
    down = np.array(descent.times, np.float64)
    first, last = down[0], down[-1]
    ends = abs(last - lo) <= tolerance or abs(last - foot) <= tolerance
    if descent.rises or abs(first - hi) > tolerance or not ends or not down[-2] > foot:
        raise ValueError(
            f"descent must fall from hi={hi:.6g} to lo={lo:.6g} (or the plan's nearest time "
            f"{foot:.6g}), and it goes from {first:.6g} to {last:.6g}"
        )
    down[-1] = foot
    return down
