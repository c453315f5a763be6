"""Two clocks: the network is handed another time than the integrator uses."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxinf.core import Leaf, Noise, Scalar, is_concrete, record
from jaxinf.process import Gaussian, Prediction, convert, eps, x0
from jaxinf.process.prediction import check_informative
from jaxinf.sampler.stepper import AnyStepper, Denoise, Wrapper, advance, table


@record
class DualClock(Wrapper):
    """The wrapped stepper, with a denoiser that reads another clock."""

    stepper: Leaf
    network_time: Leaf
    kept: Leaf

    def step(
        self, denoise: Denoise, noise: Noise, state: Any, t: Scalar, s: Scalar, row: Any = None
    ) -> tuple[Any, Any]:
        """Go from t to s."""
        denoise = on_clock(self.process, denoise, self.network_time, self.kept)
        return advance(self.stepper, denoise, noise, state, t, s, row)


@record
class Tuned(Wrapper):
    """The wrapped stepper, with a denoiser that is told tau_i in step i."""

    stepper: Leaf
    taus: Leaf
    kept: Leaf

    def table(self, times: Array) -> tuple[Array, Any]:
        """Return the taus, and the wrapped stepper's table."""
        steps = times.shape[0] - 1
        if self.taus.shape[0] != steps:
            raise ValueError(
                f"there must be one tau a step, got {self.taus.shape[0]} for a plan of {steps} "
                "steps; tune them for this plan"
            )
        return jnp.asarray(self.taus), table(self.stepper, times)

    def step(
        self, denoise: Denoise, noise: Noise, state: Any, t: Scalar, s: Scalar, row: Any
    ) -> tuple[Any, Any]:
        """Go from t to s; a call at another time r of the step asks the network at r tau / t."""
        tau, inner = row
        denoise = on_clock(self.process, denoise, lambda r: tau * (r / t), self.kept)
        return advance(self.stepper, denoise, noise, state, t, s, inner)


def on_clock(
    process: Gaussian, denoise: Denoise, network_time: Callable[[Any], Any], kept: Prediction
) -> Denoise:
    """Return the denoiser that is asked at ``network_time(t)`` and read at t.

    Its answer at the network's time is turned into ``kept``, and ``kept`` into the clean example at
    the integrator's time.
    """

    def clean(x: Array, t: Scalar) -> Array:
        other = network_time(t)
        value = convert(process, other, x, denoise(x, other), x0, kept)
        return convert(process, t, x, value, kept, x0)

    return clean


def check_kept(process: Leaf, kept: Prediction) -> None:
    """Raise for a process that has no predictions, and where ``kept`` says nothing of the data."""
    if not hasattr(process, "sigma"):
        raise TypeError(
            f"two clocks need a Gaussian process, and the stepper's is {type(process).__name__}"
        )
    check_informative(process, kept)


def dual_clock[S: AnyStepper](
    stepper: S, network_time: Leaf, kept: Prediction = eps
) -> S | DualClock:
    """A stepper whose network is handed another time than the integrator uses.

    Every call at time r asks the network at tau = network_time(r), and the integrator takes its
    answer for a prediction at r: with ``kept=process.eps`` it uses
    x_0 = (x - sigma(r) e) / alpha(r) with e the network's noise at (x, tau), with
    ``kept=process.x0`` the network's clean example as it is.

    Args:
      stepper: the stepper to wrap.
      network_time: the network's time from the integrator's, both of shape (): a pytree that can be
        called, or a function, which is part of the stepper's type (the same function object each
        time). Its values must be times of the process. None returns the wrapped stepper.
      kept: the prediction whose value is kept between the clocks; what the network was trained to
        predict is the usual choice.

    Returns:
      The stepper.

    Raises:
      TypeError: for a network time that cannot be called, or a process that is not Gaussian.
      ValueError: where the noise or the score is kept and alpha(t_max) is 0.
    """
    if network_time is None:
        return stepper
    if not callable(network_time):
        raise TypeError(
            f"network_time must be a function of the integrator's time, got {network_time!r}; "
            "sampler.tuned(stepper, taus) takes one number a step"
        )
    check_kept(stepper.process, kept)
    if jax.tree_util.all_leaves([network_time]):
        network_time = jax.tree_util.Partial(network_time)
    return DualClock(stepper, network_time, kept)


def tuned(stepper: AnyStepper, taus: Float[ArrayLike, "..."], kept: Prediction = eps) -> Tuned:
    """A stepper whose network is told tau_i instead of t_i in step i.

    The coefficients of the step stay those of t_i: DDIM becomes
    x_s = alpha_s (x - sigma_t e) / alpha_t + sigma_s e with e the network's noise at (x, tau_i).
    A stepper that calls at other times r within the step asks at r tau_i / t_i.

    Args:
      stepper: the stepper to wrap.
      taus: one time a step, shape (steps,), positive; ``tune`` trains them for a plan.
      kept: the prediction whose value is kept, the noise as in the paper; where alpha(t_max) is 0
        the noise says nothing of the data, and ``process.v`` or ``process.x0`` is.

    Returns:
      The stepper, for plans of that many steps. At taus equal to the plan's times it takes the
      wrapped stepper's steps.

    Raises:
      TypeError: for a process that is not Gaussian.
      ValueError: for taus that are not a vector of times of the process, where the noise or the
        score is kept and alpha(t_max) is 0, and, when it is run, for a plan of another length.

    Reference:
      Towards More Accurate Diffusion Model Acceleration with A Timestep Aligner, Xia et al., 2023,
      section 3.
    """
    check_kept(stepper.process, kept)
    if jnp.ndim(taus) != 1:
        raise ValueError(f"taus must be a vector, one time a step, got shape {jnp.shape(taus)}")
    latest = stepper.process.t_max
    if is_concrete((taus, latest)):
        values = np.asarray(taus, np.float64)
        if not np.all((values > 0) & (values <= float(latest) * (1 + 1e-6))):
            raise ValueError(f"taus must lie in (0, t_max={float(latest):.6g}], got {values}")
    return Tuned(stepper, jnp.asarray(taus), kept)
