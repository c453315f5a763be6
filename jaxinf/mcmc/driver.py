"""Chains from start to end as one compiled program."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxinf.core import Key, batch_vmap, check_key, is_concrete, spread
from jaxinf.core.progress import tick
from jaxinf.mcmc.adaptation import Metric, dense, diagonal
from jaxinf.mcmc.kernel import Info, Kernel, State
from jaxinf.mcmc.warm_up import warm_up
from jaxinf.target import Target

TRIES = 20
"""Random starts of a chain, of which the first with a finite density is taken."""


class Run(NamedTuple):
    """What chains found."""

    draws: Float[Array, "chains draws dim"]
    """Positions; ``jax.vmap(jax.vmap(target.constrain))(run.draws)`` are the values."""
    info: Info
    """Of every transition, [chains, draws]."""
    kernel: Any
    """As warm-up left it."""
    state: State
    """Of every chain at the end."""
    warmup_gradients: Int[Array, " chains"]
    started: Bool[Array, " chains"]
    """Whether the density and its gradient were finite where the chain began."""
    moved: Bool[Array, " chains"]
    """Whether warm-up took the chain out of a region of negligible mass, to where another was."""


def sample(
    key: Key,
    kernel: Kernel,
    target: Target,
    *,
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    learn: Metric | None = None,
    start: Float[Array, "chains dim"] | None = None,
    progress: bool = False,
) -> Run:
    """Draw from a target by Markov chains, warm-up included.

    Compiled once for a kernel's and a target's kind and shapes: other data, step sizes and keys
    recompile nothing. Composes under ``jit`` and ``vmap``; with a mesh in force
    (``jax.set_mesh``) the chains lie over its batch axes.

    Args:
      key: a typed key. A chain's draws do not depend on how many there are except through warm-up,
        which all chains share.
      kernel: ``nuts()``, ``hmc()``, ``mala()``, ``random_walk()``, or anything that is a
        :class:`Kernel`.
      target: what to draw from.
      chains: how many, side by side.
      warmup: steps in which step size and metric are adapted, and which are not kept. All chains
        adapt together: one step size, and one metric from the draws of all. A chain that is stuck
        where there is next to no mass, by the density and the spread of its own draws, goes on
        from where another chain is, and ``moved`` says so: see ``mcmc.warm_up``.
      draws: of each chain.
      learn: how the metric is learned: ``dense()``, by default up to 100 numbers, or
        ``diagonal()``.
      start: positions; by default drawn from [-2, 2] until the density is finite.
      progress: whether a bar counts the steps.

    Returns:
      :class:`Run`. Within a trace look at ``started``.

    Raises:
      ValueError: when there is no chain, for a number of draws or steps below zero, for starts
        of another shape, and for chains that found no start (outside of a trace).
    """
    check_key(key)
    for name, value, least in (("chains", chains, 1), ("warmup", warmup, 0), ("draws", draws, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    if start is not None and jnp.shape(start) != (chains, target.dim):
        raise ValueError(
            f"start must have shape {(chains, target.dim)}, a position for every chain, got "
            f"{jnp.shape(start)}."
        )
    if learn is None:
        learn = dense() if target.dim <= 100 else diagonal()
    run = _sample(key, kernel, target, learn, start, chains, warmup, draws, progress)
    if is_concrete(run.started):
        _check_started(run, start)
    return run


def _check_started(run: Run, start: Array | None) -> None:
    """Raise for chains that began where the density is not finite."""
    if run.started.all():
        return
    lost = jnp.flatnonzero(~run.started).tolist()
    how = f"at none of {TRIES} random positions in [-2, 2]" if start is None else "at the start"
    raise ValueError(
        f"the chains {lost} did not start: the log density or its gradient is not finite {how}. "
        "Pass start= positions where both are finite, of sample_prior for one, or mend the target."
    )


@partial(jax.jit, static_argnames=("chains", "warmup", "draws", "progress"))
def _sample(
    key: Key,
    kernel: Any,
    target: Any,
    learn: Any,
    start: Array | None,
    chains: int,
    warmup: int,
    draws: int,
    progress: bool,
) -> Run:
    """See :func:`sample`."""
    key_start, key_warmup, key_draws = jax.random.split(key, 3)
    index = jnp.arange(chains)
    if start is None:
        start = jax.vmap(partial(_start, key_start, target))(index)
    state = batch_vmap(partial(kernel.init, target))(spread(start))
    started = _finite(state.log_prob, state.gradient)

    def step(kernel: Any, key: Key, state: State) -> tuple[State, Info]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        return batch_vmap(lambda key, state: kernel.step(key, target, state))(keys, state)

    gradients, moved = jnp.zeros(chains, jnp.int32), jnp.zeros(chains, bool)
    if warmup:
        kernel, state, gradients, moved = warm_up(
            key_warmup, kernel, learn, state, step, target, warmup, progress
        )

    def draw(state: State, i: Array) -> tuple[State, tuple[Array, Info]]:
        state, info = step(kernel, jax.random.fold_in(key_draws, i), state)
        if progress:
            tick(i, draws, "draws")
        return state, (state.z, info)

    state, (z, info) = jax.lax.scan(draw, state, jnp.arange(draws))
    z, info = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), (z, info))
    return Run(z, info, kernel, state, gradients, started, moved)


def _start(key: Key, target: Any, index: Array) -> Array:
    """Return the first of some random positions where density and gradient are finite."""
    keys = jax.random.split(jax.random.fold_in(key, index), TRIES)
    z = jax.vmap(lambda key: jax.random.uniform(key, (target.dim,), minval=-2, maxval=2))(keys)
    value, slope = jax.vmap(jax.value_and_grad(target.log_prob))(z)
    return z[jnp.argmax(_finite(value, slope))]


def _finite(value: Float[Array, " n"], slope: Float[Array, "n dim"]) -> Bool[Array, " n"]:
    """Return where densities and gradients are finite."""
    return jnp.isfinite(value) & jnp.all(jnp.isfinite(slope), axis=1)
