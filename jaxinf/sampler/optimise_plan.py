"""Plans fitted to a denoiser: the sampler is differentiated by its own times."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, PyTree, Scalar, check_batch, check_key, is_concrete
from jaxinf.core.progress import tick
from jaxinf.process import Gaussian
from jaxinf.process.inverse import time_of
from jaxinf.sampler.driver import sample
from jaxinf.sampler.plan import Plan
from jaxinf.sampler.plan import plan as checked
from jaxinf.sampler.stepper import AnyStepper

Loss = Callable[[Array, Array], Array]


class OptimisedPlan(NamedTuple):
    """What ``optimise_plan`` found."""

    plan: Plan
    """The best plan that was met."""
    losses: Leaf
    """The loss before each iteration, shape (iterations + 1,); the first is the given plan's."""


def squared_error(
    x: Float[Array, "batch *event"], reference: Float[Array, "batch *event"]
) -> Array:
    """Mean squared distance of end points, coordinate by coordinate."""
    return jnp.mean(jnp.square(x - reference))


def optimise_plan(
    key: Key,
    stepper: AnyStepper,
    denoiser: Any,
    plan: Plan,
    x_T: Float[Array, "batch *event"],
    reference: Float[Array, "batch *event"],
    cond: PyTree = None,
    *,
    loss: Loss = squared_error,
    iterations: int = 300,
    learning_rate: Scalar = 0.03,
    progress: bool = False,
) -> OptimisedPlan:
    """Move a plan's inner times so that the samples come nearest to a reference.

    The times' log-SNRs are lam_i = lam_0 + (lam_n - lam_0) sum_{j<i} p_j with p = softmax(theta);
    theta descends from the given plan by Adam with a cosine decay, differentiating through the
    sampler, its coefficients included. First and last time stay, and a last step to time 0.

    Args:
      key: one typed key; a stochastic stepper's noise is the same in all iterations.
      stepper: the stepper to fit for.
      denoiser: as ``sample`` takes it.
      plan: where to begin, of three steps or more, and not rising; ``sampler.karras`` say.
      x_T: starts, shape (batch, ...). Few starts are fitted by heart: judge on others.
      reference: where they should end, of the same shape; of a deterministic stepper the end points
        of many small steps.
      cond: conditions with the batch's leading axis.
      loss: of samples and reference; a function, which is part of the program.
      iterations: how many, at least 1; each costs about three times the walk.
      learning_rate: of theta, positive.
      progress: whether to show a progress bar.

    Returns:
      The best plan and the losses.

    Raises:
      TypeError: for a raw key, starts that are not floating, or a traced plan.
      ValueError: for a plan that rises or has no time to move, one that starts where log-SNR is
        infinite, a reference of another shape, or fewer than one iteration.

    Reference:
      Align Your Steps: Optimizing Sampling Schedules in Diffusion Models, Sabour et al., 2024, and
      Accelerating Diffusion Sampling with Optimized Time Steps, Xue et al., 2024, pose the problem;
      here the end points' error is descended itself, as by Watson et al., 2022 (Learning Fast
      Samplers for Diffusion Models by Differentiating Through Sample Quality).
    """
    check_key(key)
    check_batch(x_T, (cond, reference))
    first, last, closing, theta = _begin(stepper, plan, x_T, reference, iterations)
    found, losses = _descend(
        key, stepper, denoiser, theta, (first, last, closing), x_T, reference, cond, learning_rate,
        loss, iterations, progress,
    )  # fmt: skip
    return OptimisedPlan(checked(stepper.process, np.asarray(found, np.float64)), losses)


def _begin(
    stepper: AnyStepper, plan: Plan, x_T: Array, reference: Array, iterations: int
) -> tuple[np.float64, np.float64, np.ndarray, Array]:
    """Return the times that stay (first, last, a closing one or none) and theta."""
    if not is_concrete((plan, stepper)):
        raise TypeError("optimise_plan takes a plan with known times: call it outside jit")
    if jnp.shape(reference) != jnp.shape(x_T):
        raise ValueError(
            f"reference must have the starts' shape {jnp.shape(x_T)}, got {jnp.shape(reference)}"
        )
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    process, times = stepper.process, np.asarray(plan.times, np.float64)
    closing = times[-1:] if float(process.sigma(times[-1])) == 0 else times[:0]
    walked = times[: times.size - closing.size]
    if plan.rises or walked.size < 3:
        raise ValueError(
            f"the plan must fall and have inner times to move, got {times.size - 1} steps"
            + (" with rises" if plan.rises else "")
        )
    if not float(process.alpha(walked[0])) > 0:
        raise ValueError(
            "log-SNR is infinite at the plan's start; begin where alpha > 0, as "
            "process.cosine(t_max=0.99) does"
        )
    lam = np.asarray(jax.vmap(process.log_snr)(jnp.asarray(walked)), np.float64)
    theta = jnp.asarray(np.log(np.diff(lam) / (lam[-1] - lam[0])))
    return walked[0], walked[-1], closing, theta


@partial(jax.jit, static_argnames=("loss", "iterations", "progress"))
def _descend(
    key: Key,
    stepper: AnyStepper,
    denoiser: Any,
    theta: Array,
    ends: tuple[Array, Array, Array],
    x_T: Array,
    reference: Array,
    cond: PyTree,
    learning_rate: Scalar,
    loss: Loss,
    iterations: int,
    progress: bool,
) -> tuple[Array, Array]:
    """Return the times of the lowest loss, and all losses."""
    import optax

    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, iterations))

    def error(theta: Array) -> Array:
        walk = Plan(_times(stepper.process, theta, *ends))
        return loss(sample(key, stepper, denoiser, walk, x_T, cond).x, reference)

    def body(carry: Any, i: Array) -> tuple[Any, Array]:
        theta, memory, best, lowest = carry
        value, slope = jax.value_and_grad(error)(theta)
        better = value < lowest
        best, lowest = jnp.where(better, theta, best), jnp.where(better, value, lowest)
        update, memory = adam.update(jnp.nan_to_num(slope), memory)
        if progress:
            tick(i, iterations + 1, "optimise plan")
        return (theta + update, memory, best, lowest), value

    start = theta, adam.init(theta), theta, jnp.asarray(jnp.inf, x_T.dtype)
    (_, _, best, _), losses = jax.lax.scan(body, start, jnp.arange(iterations + 1))
    return _times(stepper.process, best, *ends), losses


def _times(process: Gaussian, theta: Array, first: Array, last: Array, closing: Array) -> Array:
    """Return the times of softmax shares of the log-SNR."""
    low, high = process.log_snr(first), process.log_snr(last)
    inner = low + (high - low) * jnp.cumsum(jax.nn.softmax(theta))[:-1]
    middle = jax.vmap(time_of, (None, 0))(process, inner)
    whole = [jnp.atleast_1d(jnp.asarray(a, middle.dtype)) for a in (first, middle, last, closing)]
    return jnp.concatenate(whole)
