"""The driver: one scan over a plan, compiled once for records of the same structure."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxinf.core import Independent, Key, PyTree, check_batch, check_key, is_concrete
from jaxinf.core.progress import tick
from jaxinf.sampler.plan import Plan
from jaxinf.sampler.stepper import Stepper


class Path(NamedTuple):
    """What was passed on the way, stacked along a leading axis of the plan's steps."""

    x: Float[Array, "steps batch *event"]
    """The examples after each step."""
    info: Any
    """The stepper's info of each step."""


class SampleInfo(NamedTuple):
    """What a run tells."""

    finite: Bool[Array, " batch"]
    """Whether each sample's numbers are all finite."""
    path: Path | None
    """The trajectory, where it was asked for."""


class Sample(NamedTuple):
    """The result of a run."""

    x: Float[Array, "batch *event"]
    """The samples."""
    state: Any
    """The stepper's last state."""
    info: SampleInfo


def sample(
    key: Key,
    stepper: Stepper,
    denoiser: Any,
    plan: Plan,
    x_T: Shaped[Array, "batch *event"],
    cond: PyTree = None,
    *,
    index: Int[Array, " batch"] | None = None,
    trajectory: bool = False,
    progress: bool = False,
) -> Sample:
    """Walk a plan from noise to data.

    Compiled once for given shapes and structures: other numbers in the stepper, the denoiser, the
    plan or the start never recompile, and compile time and memory do not depend on the number of
    steps. Composes under ``jit``, ``vmap``, ``grad`` and ``shard_map``.

    Args:
      key: one typed key; sample i's noise depends on it and on ``index[i]`` alone.
      stepper: the increment, ``sampler.heun(process)`` say.
      denoiser: a pytree called as ``denoiser(x, t, cond)`` for one example, returning the mean of
        the clean example with x's shape.
      plan: the times to walk.
      x_T: starts, ``process.prior().sample(key, shape)`` say; floating.
      cond: conditions, a pytree whose leaves have the batch's leading axis.
      index: the samples' numbers, by default 0 ... batch - 1; a shard of a larger batch passes
        its own.
      trajectory: whether to stack what is passed on the way in ``info.path``.
      progress: whether to show a progress bar.

    Returns:
      ``x``, the stepper's last ``state``, and ``info``.

    Raises:
      TypeError: for a raw key, or a start that is not floating.
      ValueError: for an empty batch, conditions or indices of another length, a plan that leaves
        the stepper's process, or a denoiser that changes the example's shape.
    """
    check_key(key)
    x_T = jnp.asarray(x_T)
    _check(stepper, plan, x_T, cond, index)
    if index is None:
        index = jnp.arange(x_T.shape[0])
    return _sample(key, stepper, denoiser, plan, x_T, cond, index, trajectory, progress)


@partial(jax.jit, static_argnames=("trajectory", "progress"))
def _sample(
    key: Key,
    stepper: Stepper,
    denoiser: Any,
    plan: Plan,
    x: Array,
    cond: PyTree,
    index: Array,
    trajectory: bool,
    progress: bool,
) -> Sample:
    steps, shape, dtype = plan.steps, x.shape[1:], x.dtype
    times = jnp.asarray(plan.times, jnp.promote_types(dtype, jnp.float32))

    def step(states: Any, slot: tuple[Array, Array, Array]) -> tuple[Any, Path | None]:
        i, t, s = slot

        def one(state: Any, cond: PyTree, index: Array) -> tuple[Any, Any]:
            noise = Independent(key, i, index, shape, dtype)

            def denoise(x: Array, t: Array) -> Array:
                clean = denoiser(x, t, cond)
                if clean.shape != shape:
                    raise ValueError(
                        f"the denoiser must return the example's shape {shape}, it returned "
                        f"{clean.shape}; it is called for one example, without a batch axis"
                    )
                return clean

            new, info = stepper.step(denoise, noise, state, t, s)
            return jax.tree.map(lambda a, b: a.astype(b.dtype), new, state), info

        states, info = jax.vmap(one)(states, cond, index)
        if progress:
            tick(i, steps, "sampling")
        return states, Path(states.x, info) if trajectory else None

    slots = (jnp.arange(steps), times[:-1], times[1:])
    states, path = jax.lax.scan(step, jax.vmap(stepper.init)(x), slots)
    finite = jnp.all(jnp.isfinite(states.x.reshape(x.shape[0], -1)), axis=1)
    return Sample(states.x, states, SampleInfo(finite, path))


def _check(stepper: Stepper, plan: Plan, x: Array, cond: PyTree, index: Array | None) -> None:
    """Raise on what can be seen before anything is compiled."""
    check_batch(x, (cond, index))
    process = stepper.process
    if is_concrete((plan, process.t_max)):
        first, latest = float(plan.times[0]), float(process.t_max)
        if first > latest * (1 + 1e-6):
            raise ValueError(
                f"the plan starts at t={first:.6g}, outside the stepper's process, whose t_max is "
                f"{latest:.6g}; make both from the same process"
            )
