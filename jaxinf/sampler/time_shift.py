"""Time shifting: a sample is denoised at the time that its own variance suggests."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Diagonal, Leaf, Noise, Scalar, carry, is_concrete, record, static
from jaxinf.sampler.stepper import AnyStepper, Denoise, Wrapper, advance, has_table


class TimeShiftState(NamedTuple):
    """The wrapped stepper's state, and whether it has stepped."""

    stepper: Any
    stepped: Leaf

    @property
    def x(self) -> Leaf:
        """The example now."""
        return self.stepper.x


class TimeShiftInfo(NamedTuple):
    """What a step tells."""

    stepper: Any
    """The wrapped stepper's info."""
    time: Leaf
    """The time that the step was taken from."""


@record
class TimeShift(Wrapper):
    """A step from t to s is taken from the time near t whose variance is nearest to the sample's.

    t_s = argmin |var(x) - (alpha(tau)^2 v + sigma(tau)^2)| over tau in a window around t.
    """

    stepper: Leaf
    cutoff: Leaf
    data_variance: Leaf
    window: int = static()
    of: int = static()

    def init(self, x: Array) -> TimeShiftState:
        """Return the state at the start."""
        if x.size < 2:
            raise ValueError(
                f"a variance over an example's numbers needs two of them, got shape {x.shape}; "
                "sampler.time_shift is for examples of many dimensions"
            )
        return TimeShiftState(self.stepper.init(x), carry(x, 0.0) > 0)

    def step(
        self,
        denoise: Denoise,
        noise: Noise,
        state: TimeShiftState,
        t: Scalar,
        s: Scalar,
        row: Any = None,
    ) -> tuple[TimeShiftState, TimeShiftInfo]:
        """Go from the shifted t to s; the first step, and those from the cutoff on, unshifted."""
        shifts = state.stepped & (t > self.cutoff)
        time = jnp.where(shifts, self._nearest(state.x, t, s), t)
        new, info = advance(self.stepper, denoise, noise, state.stepper, time, s, None)
        return TimeShiftState(new, state.stepped | True), TimeShiftInfo(info, time)

    def _nearest(self, x: Array, t: Scalar, s: Scalar) -> Array:
        """Return the time in the window, between s and t_max, of the variance nearest to x's."""
        process = self.process
        t = jnp.asarray(t)
        half = self.window // 2
        # from the middle outwards, so that of equals the least shift is taken
        offsets = jnp.asarray(sorted(range(-half, half + 1), key=abs), t.dtype)
        times = t + offsets * (process.t_max / self.of)
        inside = (times > s) & (times <= process.t_max) | (offsets == 0)
        times = jnp.where(inside, times, t)
        power = jnp.mean(jnp.square(process.covariance.scale))

        def expected(t: Scalar) -> Array:
            alpha, sigma = process.alpha(t), process.sigma(t)
            return jnp.square(alpha) * self.data_variance + jnp.square(sigma) * power

        variance = jnp.var(x.astype(t.dtype), ddof=1)
        return times[jnp.argmin(jnp.abs(variance - jax.vmap(expected)(times)))]


def time_shift(
    stepper: AnyStepper,
    window: int,
    cutoff: Scalar,
    *,
    data_variance: Scalar = 0.0,
    of: int = 1000,
) -> AnyStepper:
    """Take each step from the time at which the sample's variance is what the process says.

    t_s = argmin over tau in [t - w/2, t + w/2] of |var(x) - sigma(tau)^2|, with var(x) over the
    example's numbers; the step, network and update both, goes from t_s to the plan's next time. It
    undoes the drift of the noise level that errors of the network bring (exposure bias).

    Args:
      stepper: what it wraps, ``sampler.ddim(process)`` or ``sampler.ancestral(process)`` say.
      window: the window's width w in steps of the training grid, not negative; 0 or 1 return the
        wrapped stepper. Times below the plan's next one or above t_max are left out.
      cutoff: times up to this one are not shifted. With v = 0 it must be where the data's variance
        begins to count, 0.2 to 0.5 t_max in the paper; with the data's own v it may be 0.
      data_variance: v, the variance over an example's numbers of the data. The expected variance
        is alpha^2 v + sigma^2; the paper leaves the data's share out, v = 0. Where v is the noise's
        own (1, if variance preserving) the variance tells no time.
      of: steps of the training grid on [0, t_max].

    Returns:
      The stepper; its info holds the wrapped stepper's and the ``time`` that was taken.

    Raises:
      ValueError: for a negative window, a grid without steps, a negative data variance, a stepper
        whose numbers are made from the plan beforehand, or correlated noise.

    Reference:
      Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted Time Steps, Li et
      al., 2024, algorithm 3.
    """
    if not window >= 0 or not of >= 1:
        raise ValueError(
            f"window must not be negative and of at least 1, got window={window} and of={of}; "
            "window=0 is the wrapped stepper"
        )
    if is_concrete(data_variance) and not float(data_variance) >= 0:
        raise ValueError(f"data_variance must not be negative, got {data_variance}")
    if window < 2:
        return stepper
    if has_table(stepper):
        raise ValueError(
            f"{type(stepper).__name__} makes its numbers from the plan beforehand, so its times "
            "cannot shift; wrap a one-step method, sampler.ddim(process) say"
        )
    if not isinstance(getattr(stepper.process, "covariance", None), Diagonal):
        raise ValueError(
            "sampler.time_shift compares variances over an example's numbers, which says little "
            "where their noise is correlated; take a Gaussian process with white noise"
        )
    return TimeShift(stepper, cutoff, data_variance, window, of)
