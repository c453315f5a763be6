"""Tuning one network time a step, with the network frozen."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Independent, Key, Scalar, check_batch, check_key, is_concrete
from jaxinf.process import Prediction, eps
from jaxinf.sampler.driver import host_table, narrowed
from jaxinf.sampler.dual_clock import check_kept, on_clock
from jaxinf.sampler.plan import Plan
from jaxinf.sampler.stepper import AnyStepper, advance, table
from jaxinf.sampler.tuning_objectives import Objective

_DIPS = 4  # minima among the candidates that are looked at closely


def tune(
    key: Key,
    stepper: AnyStepper,
    denoiser: Any,
    plan: Plan,
    x_T: Float[Array, "batch *event"],
    objective: Objective,
    cond: PyTree = None,
    *,
    kept: Prediction = eps,
    candidates: int = 64,
    refinements: int = 32,
) -> Float[Array, " steps"]:
    """Train one time a step for a frozen network, one step after the other.

    The samples walk the plan; at step i they stand where the steps before, already tuned, have
    brought them, and tau_i minimises the objective of the step they take from there: the lowest
    four of the candidates are narrowed down by golden sections, and of those that save at least
    95 % of what the best one does the nearest to t_i is taken, t_i itself where none is better.

    The authors train by ``steady_noise``, by Adam from t_i over fresh samples. ``match_moments``
    asks what the method is for, that the law after each step be the true one.

    Args:
      key: one typed key, for steppers that draw; ``sample`` draws the same with it.
      stepper: the stepper to tune, not wrapped by ``tuned``.
      denoiser: as ``sample`` takes it.
      plan: the plan to tune for; it must not rise.
      x_T: samples at the plan's first time, shape (batch, ...).
      objective: ``steady_noise``, or ``match_moments(mean, variance)`` of the clean data.
      cond: conditions with the batch's leading axis.
      kept: as ``tuned`` takes it.
      candidates: how many times are tried for each step, at least 2, spaced as the plan is.
      refinements: golden sections of the interval around a minimum.

    Returns:
      Shape (steps,), for ``tuned(stepper, taus, kept)``.

    Raises:
      TypeError: for a raw key, or starts that are not floating.
      ValueError: for an empty batch, a plan that rises, or too few candidates or refinements.

    Reference:
      Towards More Accurate Diffusion Model Acceleration with A Timestep Aligner, Xia et al., 2023,
      section 3, the sequential strategy.
    """
    check_key(key)
    check_kept(stepper.process, kept)
    check_batch(x_T, cond)
    if plan.rises:
        raise ValueError("a step back to noise asks no network; tune for a plan that only falls")
    if candidates < 2 or refinements < 0:
        raise ValueError(
            "candidates must be at least 2 and refinements at least 0, got "
            f"{candidates} and {refinements}"
        )
    rows = host_table(stepper, plan) if is_concrete((stepper, plan)) else None
    return _tune(
        key, stepper, denoiser, plan, rows, x_T, objective, cond, kept, candidates, refinements
    )


@partial(jax.jit, static_argnames=("candidates", "refinements"))
def _tune(
    key: Key,
    stepper: AnyStepper,
    denoiser: Any,
    plan: Plan,
    rows: Any,
    x_T: Array,
    objective: Objective,
    cond: PyTree,
    kept: Prediction,
    candidates: int,
    refinements: int,
) -> Array:
    """Tune the steps in their order."""
    process = stepper.process
    key = jax.random.fold_in(key, 0)  # as the driver does

    def denoise(x: Array, t: Scalar) -> Array:
        return jax.vmap(lambda x, cond: denoiser(x, t, cond))(x, cond)

    def walk(states: Any, slot: Any) -> tuple[Any, Array]:
        i, t, s, row = slot

        def end(tau: Array) -> Any:
            def one(state: Any, cond: PyTree, index: Array) -> Any:
                noise = Independent(key, i, index, state.x.shape, x_T.dtype)
                call = on_clock(
                    process, lambda x, t: denoiser(x, t, cond), lambda r: tau * (r / t), kept
                )
                new, _ = advance(stepper, call, noise, state, t, s, row)
                return jax.tree.map(lambda a, b: a.astype(b.dtype), new, state)

            return jax.vmap(one)(states, cond, jnp.arange(x_T.shape[0]))

        def loss(tau: Array) -> Array:
            value = objective.loss(process, denoise, t, states.x, s, end(tau).x)
            return jnp.asarray(value, t.dtype)

        tau = _nearest_minimum(loss, t, tried, refinements)
        return end(tau), tau

    times = jnp.asarray(plan.times, jnp.promote_types(x_T.dtype, jnp.float32))
    knots = jnp.arange(times.shape[0], dtype=times.dtype)
    places = jnp.linspace(0, knots[-1], candidates, dtype=times.dtype)
    tried = jnp.interp(places, knots, jnp.maximum(times, process.t_min))
    rows = table(stepper, times) if rows is None else narrowed(rows, times.dtype)
    slots = (jnp.arange(plan.steps), times[:-1], times[1:], rows)
    return jax.lax.scan(walk, jax.vmap(stepper.init)(x_T), slots)[1]


def _nearest_minimum(
    loss: Callable[[Array], Array], own: Array, tried: Array, refinements: int
) -> Array:
    """Return the minimum nearest to ``own`` among those that save 95 % of what the best does."""
    losses = jax.lax.map(loss, tried)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    around = jnp.pad(losses, 1, constant_values=jnp.inf)
    dips = (losses <= around[:-2]) & (losses <= around[2:])
    edged = jnp.pad(tried, 1, mode="edge")

    def narrowed(i: Array) -> tuple[Array, Array]:
        bracket = edged[i], tried[i], edged[i + 2], losses[i]
        _, tau, _, least = jax.lax.fori_loop(0, refinements, partial(_section, loss), bracket)
        return tau, least

    lowest = jnp.argsort(jnp.where(dips, losses, jnp.inf))[:_DIPS]
    taus, least = jax.lax.map(narrowed, lowest)
    at_own, best = loss(own), jnp.min(least)
    good = least <= best + 0.05 * jnp.maximum(at_own - best, 0.0)
    tau = taus[jnp.argmin(jnp.where(good, jnp.abs(taus - own), jnp.inf))]
    return jnp.where(best < at_own, tau, own)


def _section(
    loss: Callable[[Array], Array], _: Any, bracket: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Cut the longer side of a bracket (a, b, c), with b the least so far, by a golden section."""
    a, b, c, at_b = bracket
    longer = jnp.abs(c - b) >= jnp.abs(a - b)
    a, c = jnp.where(longer, a, c), jnp.where(longer, c, a)
    x = b + 0.381966 * (c - b)
    at_x = loss(x)
    better = at_x < at_b
    new = jnp.where(better, jnp.stack([b, x, c, at_x]), jnp.stack([a, b, x, at_b]))
    return new[0], new[1], new[2], new[3]
