"""Stopping each sample as soon as the denoiser's prediction of the clean example has settled."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxinf.core import Leaf, Noise, Scalar, carry, is_concrete, record
from jaxinf.sampler.plan import Plan
from jaxinf.sampler.stepper import AnyStepper, Denoise, Wrapper, advance


class StoppingState(NamedTuple):
    """What the wrapper carries."""

    x: Leaf
    inner: Any
    """The wrapped stepper's state."""
    clean: Leaf
    """The last step's prediction of x_0."""
    steps: Leaf
    """How many steps the sample has taken; the denoiser is not needed for the others."""
    stopped: Leaf
    """Whether it has stopped, at step number ``steps - 1``."""


class StoppingInfo(NamedTuple):
    """What a step tells."""

    clean: Leaf
    """The prediction of x_0; a stopped sample's stays."""
    steps: Leaf
    stopped: Leaf
    inner: Any
    """The wrapped stepper's info; zeros once the sample has stopped."""


@record
class EarlyStopping(Wrapper):
    """The wrapped stepper, until two predictions of x_0 in a row agree."""

    stepper: Leaf
    tolerance: Leaf
    noise_ratio: Leaf

    def init(self, x: Array) -> StoppingState:
        """Return the state at the start."""
        zero = carry(x, 0.0)
        return StoppingState(x, self.stepper.init(x), x, zero.astype(jnp.int32), zero > 0)

    def step(
        self,
        denoise: Denoise,
        noise: Noise,
        state: StoppingState,
        t: Scalar,
        s: Scalar,
        row: Any = None,
    ) -> tuple[StoppingState, StoppingInfo]:
        """Go from t to s; where the sample has stopped, stay."""
        inner, info = advance(self.stepper, denoise, noise, state.inner, t, s, row)
        inner = jax.tree.map(lambda a, b: a.astype(b.dtype), inner, state.inner)
        clean = _clean(info).astype(state.clean.dtype)
        stop = self._settled(state, clean, t)
        x = jnp.where(stop, clean, inner.x)
        new = StoppingState(x, inner, clean, state.steps + 1, stop)
        new = jax.tree.map(partial(jnp.where, state.stopped), state, new)
        info = jax.tree.map(lambda a: jnp.where(state.stopped, jnp.zeros_like(a), a), info)
        return new, StoppingInfo(new.clean, new.steps, new.stopped, info)

    def _settled(self, state: StoppingState, clean: Array, t: Scalar) -> Array:
        """Whether the prediction has moved by less than the tolerance, at low enough noise."""
        moved = (clean - state.clean).astype(jnp.promote_types(clean.dtype, jnp.float32))
        low = self.process.sigma(t) < self.noise_ratio * self.process.alpha(t)
        near = jnp.mean(jnp.square(moved)) < jnp.square(self.tolerance)
        return near & low & (state.steps > 0)


def _clean(info: Any) -> Array:
    if not hasattr(info, "clean"):
        raise TypeError(
            "early stopping watches the prediction of x_0, the field 'clean' of a stepper's info, "
            f"and this stepper's {type(info).__name__} has none"
        )
    return info.clean


def early_stopping[S: AnyStepper](
    stepper: S, tolerance: Scalar, noise_ratio: Scalar = 1.0
) -> S | EarlyStopping:
    """A stepper by which each sample stops when its prediction of the clean example has settled.

    At a step from t with sigma(t) < noise_ratio alpha(t), where the denoiser's x_0 differs from the
    step's before by less than ``tolerance`` in root mean square over the example, the sample takes
    that x_0 for its end and stays there. Samples do not see each other.

    The error: where the predictions' changes do not grow any more from there on, and the plan ends
    at time 0, where the walk's last prediction is its end, the stopped sample is within
    ``tolerance`` times the number of steps left of where it would have come. On Gaussian data of
    standard deviation c the prediction moves along the probability flow as
    c^2 / sqrt(c^2 + r^2) with r = sigma / alpha, which is concave below r = c / sqrt(2); so the
    bound holds there for plans whose steps in r do not grow. At high noise the prediction is near
    the data's mean whatever x is, and hardly moves either: hence ``noise_ratio``.

    Args:
      stepper: the stepper to wrap, with a Gaussian process, whose info has a field ``clean``.
      tolerance: root mean square, in the units of the data, not negative; 0 (as a number) returns
        the wrapped stepper.
      noise_ratio: sigma / alpha below which samples may stop, positive, in the units of the data.

    Returns:
      The stepper. Its state and info have ``steps``, how many steps each sample took, and
      ``stopped``; ``calls_used(stepper, plan, steps)`` are the calls of the denoiser that each
      sample needed. A batch is computed to the plan's end all the same, its stopped samples in
      vain: what it saves is seen by a server that takes them out.
      Not for plans that rise: a stopped sample is at time 0, wherever the plan is.

    Raises:
      TypeError: for a process that is not Gaussian, or, when a step is traced, an info without
        ``clean``.
      ValueError: for a negative tolerance or a noise ratio that is not positive.
    """
    if not hasattr(stepper.process, "sigma"):
        raise TypeError(
            "early stopping needs a Gaussian process, and the stepper's is "
            f"{type(stepper.process).__name__}"
        )
    if is_concrete(noise_ratio) and not float(noise_ratio) > 0:
        raise ValueError(
            f"noise_ratio must be positive, got {noise_ratio}; jnp.inf lets samples stop anywhere"
        )
    if is_concrete(tolerance):
        if not float(tolerance) >= 0:
            raise ValueError(f"tolerance must not be negative, got {tolerance}; 0 never stops")
        if float(tolerance) == 0:
            return stepper
    return EarlyStopping(stepper, tolerance, noise_ratio)


def calls_used(stepper: AnyStepper, plan: Plan, steps: Int[Array, "..."]) -> Int[np.ndarray, "..."]:
    """How often each sample needed the denoiser.

    Args:
      stepper: the stepper, wrapped or not.
      plan: the plan that was walked.
      steps: how many of its steps each sample took, ``state.steps`` of an early-stopped run.

    Returns:
      The calls, of the same shape.

    Raises:
      ValueError: for a plan that rises, where steps are counted anew after each rise.
    """
    if plan.rises:
        raise ValueError(
            "on a plan that rises a sample's steps are counted anew after each rise; count the "
            "calls of a plan that only falls, plan.calls(stepper) where nothing stops"
        )
    times = np.asarray(plan.times, np.float64)
    calls = [stepper.calls(t, s) for t, s in itertools.pairwise(times)]
    return np.concatenate([[0], np.cumsum(calls)])[np.asarray(steps)]
