"""The driver: one scan over a plan, compiled once for records of the same structure."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxinf.core import (
    Brownian,
    Independent,
    Key,
    PyTree,
    batch_vmap,
    check_batch,
    check_key,
    is_concrete,
    spread,
)
from jaxinf.core.progress import tick
from jaxinf.sampler.plan import Plan
from jaxinf.sampler.stepper import AnyStepper, Tabulated, advance, renoise, table


class Path(NamedTuple):
    """What was passed on the way, stacked along a leading axis of the plan's steps."""

    x: Float[Array, "steps batch *event"]
    """The examples after each step."""
    info: Any
    """The stepper's info of each step."""


class SampleInfo(NamedTuple):
    """What a run tells."""

    finite: Bool[Array, " batch"]
    """Whether each sample's numbers were finite after every step."""
    failed_at: Int[Array, " batch"]
    """The step at which each sample ceased to be finite; it keeps its state of before, and takes
    part no more. The number of steps where all went well."""
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
    stepper: AnyStepper,
    denoiser: Any,
    plan: Plan,
    x_T: Shaped[Array, "batch *event"],
    cond: PyTree = None,
    *,
    index: Int[Array, " batch"] | None = None,
    noise: Brownian | None = None,
    block: int | None = None,
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
      x_T: starts, ``process.prior().sample(key, shape)`` say; floating, or whole numbers for a
        process of tokens.
      cond: conditions, a pytree whose leaves have the batch's leading axis.
      index: the samples' numbers, by default 0 ... batch - 1; a shard of a larger batch passes
        its own.
      noise: ``core.brownian(process.t_max)`` for noise that agrees across grids; by default
        increments are independent.
      block: compute this many samples at a time, one block after the other. All blocks are one
        program, so a sample is the same to the last bit whatever the batch.
      trajectory: whether to stack what is passed on the way in ``info.path``.
      progress: whether to show a progress bar.

    Returns:
      ``x``, the stepper's last ``state``, and ``info``.

    Raises:
      TypeError: for a raw key, or a start that is not floating.
      ValueError: for an empty batch, conditions or indices of another length, a block below 1, a
        plan that leaves the stepper's process, or a denoiser that changes the example's shape.
    """
    check_key(key)
    x_T = jnp.asarray(x_T)
    check_walk(stepper, plan, x_T, cond, index, block)
    rows = host_table(stepper, plan) if is_concrete((stepper, plan)) else None
    # jax.random.key(0) and key(1) differ in one bit, as indices do: hashed, keys are far apart
    key = jax.random.fold_in(key, 0)
    return _sample(
        key, stepper, denoiser, plan, rows, x_T, cond, index, noise, block, trajectory, progress
    )


@partial(jax.jit, static_argnames=("block", "trajectory", "progress"))
def _sample(
    key: Key,
    stepper: AnyStepper,
    denoiser: Any,
    plan: Plan,
    rows: Any,
    x: Array,
    cond: PyTree,
    index: Array | None,
    noise: Any,
    block: int | None,
    trajectory: bool,
    progress: bool,
) -> Sample:
    times = jnp.asarray(plan.times, jnp.promote_types(x.dtype, jnp.float32))
    rows = table(stepper, times) if rows is None else narrowed(rows, times.dtype)
    slots = (jnp.arange(plan.steps), times[:-1], times[1:], rows)
    index = jnp.arange(x.shape[0]) if index is None else index
    x, cond, index = spread((x, cond, index))

    def run(x: Array, cond: PyTree, index: Array) -> tuple[Any, ...]:
        step = partial(_step, key, stepper, denoiser, noise, plan.rises, cond, index, x.dtype)

        def body(carry: tuple[Any, Array], slot: Any) -> tuple[Any, Path | None]:
            carry, info = step(carry, slot)
            if progress:
                tick(slot[0], plan.steps, "sampling")
            return carry, Path(carry[0].x, info) if trajectory else None

        states = jax.vmap(stepper.init)(x)
        failed_at = jnp.zeros_like(index)
        (states, failed_at), path = jax.lax.scan(body, (states, failed_at), slots)
        return states, failed_at, path

    run = run if block is None else in_blocks(run, block)
    states, failed_at, path = run(x, cond, index)
    return Sample(states.x, states, SampleInfo(failed_at == plan.steps, failed_at, path))


def _step(
    key: Key,
    stepper: AnyStepper,
    denoiser: Any,
    noise: Any,
    rises: bool,
    cond: PyTree,
    index: Array,
    dtype: Any,
    carry: tuple[Any, Array],
    slot: tuple[Array, Array, Array, Any],
) -> tuple[tuple[Any, Array], Any]:
    """One step of the whole batch; samples that are not finite any more stay where they were."""
    i, t, s, row = slot

    def one(state: Any, failed_at: Array, cond: PyTree, index: Array) -> tuple[Any, Array, Any]:
        shape = state.x.shape
        make = Independent if noise is None else noise.at
        increments = make(key, i, index, shape, dtype)

        def denoise(x: Array, t: Array, *context: Any) -> Any:
            out = denoiser(x, t, cond, *context)
            clean = out[0] if context else out
            if clean.shape[: len(shape)] != shape:
                raise ValueError(
                    f"the denoiser must return the example's shape {shape}, it returned "
                    f"{clean.shape}; it is called for one example, without a batch axis"
                )
            return out

        def back() -> tuple[Any, Any]:
            new, info = advance(stepper, denoise, increments, state, t, s, row)
            return jax.tree.map(lambda a, b: a.astype(b.dtype), new, state), info

        def forth() -> tuple[Any, Any]:
            x = renoise(stepper.process, increments, state.x, t, s).astype(dtype)
            empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(back)[1])
            return stepper.init(x), empty

        new, info = jax.lax.cond(s > t, forth, back) if rises else back()
        # computed once: fused into what reads it, a step of little work costs 1.4 times as much
        new = jax.lax.optimization_barrier(new)
        good = jnp.all(jnp.isfinite(new.x)) & (failed_at == i)
        return jax.tree.map(partial(jnp.where, good), new, state), failed_at + good, info

    new, failed_at, info = batch_vmap(one)(*carry, cond, index)
    return (new, failed_at), info


def in_blocks(run: Any, block: int) -> Any:
    """Map a run over blocks of the batch, the last one filled up by repetition."""

    def blocks(*batch: Any) -> Any:
        size = jax.tree.leaves(batch)[0].shape[0]
        take = (jnp.arange(-(-size // block) * block) % size).reshape(-1, block)
        states, failed_at, path = jax.lax.map(
            lambda rows: run(*jax.tree.map(lambda a: a[rows], batch)), take
        )
        flat = partial(jax.tree.map, lambda a: a.reshape(-1, *a.shape[2:])[:size])
        path = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), path)
        path = jax.tree.map(lambda a: a.reshape(a.shape[0], -1, *a.shape[3:])[:, :size], path)
        return flat(states), flat(failed_at), path

    return blocks


@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _table(stepper: AnyStepper, times: Array) -> Any:
    return table(stepper, times)


def host_table(stepper: AnyStepper, plan: Plan) -> Any:
    """Make the table now, in float64, which accelerators lack or emulate, on the CPU.

    It is a program of many small operations that runs once, so it is compiled without optimising.
    """
    if not isinstance(stepper, Tabulated):
        return None
    host = jax.tree.map(np.asarray, (stepper, plan.times))

    def make() -> Any:
        with jax.enable_x64(True), jax.default_device("cpu"):
            return jax.tree.map(np.asarray, _table(host[0], host[1].astype(np.float64)))

    # in a thread, where nothing is being traced and no mesh is in force, which would win over "cpu"
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def narrowed(rows: Any, dtype: Any) -> Any:
    """Cast a table's floating numbers to the times' dtype."""
    return jax.tree.map(
        lambda a: jnp.asarray(a, dtype if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype), rows
    )


def check_walk(
    stepper: AnyStepper, plan: Plan, x: Array, cond: PyTree, index: Array | None, block: int | None
) -> None:
    """Raise on what can be seen before anything is compiled."""
    process = stepper.process
    check_batch(x, (cond, index), tokens=not hasattr(process, "sigma"))
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1, got {block}; None computes the batch at once")
    if is_concrete((plan, process.t_max)):
        times, latest = np.asarray(plan.times, np.float64), float(process.t_max)
        if not np.all((times >= 0) & (times <= latest * (1 + 1e-6))):
            raise ValueError(
                f"the plan goes from t={times.max():.6g} to t={times.min():.6g}, outside the "
                f"stepper's process, whose times are 0 to {latest:.6g}; make both from the same "
                "process"
            )
        gaps = np.diff(times)
        if not (np.all(gaps) and (plan.rises or np.all(gaps < 0))):
            i = int(np.argmax((gaps == 0) | (gaps > 0) & (not plan.rises)))
            raise ValueError(
                f"step {i} of the plan goes from t={times[i]:.6g} to t={times[i + 1]:.6g}: times "
                "must fall, or rise where sampler.restart says so, and not repeat"
            )
