"""Warm-up of chains that adapt together."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf.core import Key
from jaxinf.core.progress import tick
from jaxinf.mcmc.adaptation import (
    Moments,
    averaged,
    first_step,
    steps_from,
    windows,
    with_step,
)
from jaxinf.mcmc.kernel import State


def warm_up(
    key: Key,
    kernel: Any,
    learn: Any,
    state: State,
    step: Any,
    target: Any,
    warmup: int,
    progress: bool,
) -> tuple[Any, State, Array, Array]:
    """Adapt a kernel on all chains; return it, the chains' states, gradients, and who was moved."""
    key_first, key_steps = jax.random.split(key)
    chains = state.z.shape[0]
    none = jax.vmap(learn.none)(state.z), jnp.zeros_like(state.log_prob)
    kernel = dataclasses.replace(
        kernel,
        step_size=jnp.asarray(kernel.step_size, state.z.dtype),
        metric=learn.start(kernel.metric, state.z[0]),
    )

    def acceptance(kernel: Any) -> Array:
        keys = jax.random.split(key_first, chains)
        info = jax.vmap(lambda key, one: kernel.probe().step(key, target, one)[1])(keys, state)
        return jnp.mean(info.acceptance)

    kernel = first_step(kernel, acceptance)

    def gathered(seen: tuple[Moments, Array], state: State) -> tuple[Moments, Array]:
        moments, height = seen
        moments = jax.vmap(lambda one, z: learn.add(one, z[None]))(moments, state.z)
        return moments, height + (state.log_prob - height) / moments.count

    def body(carry: Any, slot: Any) -> Any:
        kernel, steps, seen, state, moved = carry
        i, mark = slot
        kernel = with_step(kernel, steps.log_step)
        state, info = step(kernel, jax.random.fold_in(key_steps, i), state)
        steps = averaged(steps, jnp.mean(info.acceptance), kernel.goal)
        seen = jax.lax.cond(mark > 0, lambda: gathered(seen, state), lambda: seen)

        def renewed() -> Any:
            lost = stuck(learn, *seen) & (mark == 3)
            new = dataclasses.replace(kernel, metric=learn.covariance(learn.pooled(seen[0], ~lost)))
            return new, steps_from(jnp.exp(steps.mean)), none, rescued(state, lost), moved | lost

        kept = kernel, steps, seen, state, moved
        carry = jax.lax.cond(mark >= 2, renewed, lambda: kept)
        if progress:
            tick(i, warmup, "warm-up")
        return carry, info.gradients

    start = kernel, steps_from(kernel.step_size), none, state, jnp.zeros(chains, bool)
    slots = jnp.arange(warmup), jnp.asarray(windows(warmup))
    (kernel, steps, _, state, moved), gradients = jax.lax.scan(body, start, slots)
    return with_step(kernel, steps.mean), state, jnp.sum(gradients, axis=0), moved


def stuck(learn: Any, moments: Moments, height: Float[Array, " chains"]) -> Bool[Array, " chains"]:
    r"""Return which chains are where there is next to no mass.

    The mass of the region that a chain has been in is about that of a Gaussian with its draws'
    covariance S and, on average, their density:

    .. math:: \log Z_c = \overline{\log p}_c + \tfrac12 \log \det S_c + \text{const}

    so that a low density counts for nothing where it is spread wide. A chain is stuck where this is
    less than the largest by 10 nats and twice the root of the dimension, the scale on which the
    mean of few draws is known.

    Args:
      learn: what makes covariances of moments.
      moments: of each chain's draws.
      height: mean log densities of these.
    """
    dim = moments.mean.shape[1]
    spread = jax.vmap(lambda one: learn.covariance(one).log_det_sqrt(dim))(moments)
    mass = jnp.where(jnp.isfinite(height + spread), height + spread, -jnp.inf)
    return mass < jnp.max(mass) - 10 - 2 * dim**0.5


def rescued(state: State, lost: Bool[Array, " chains"]) -> State:
    """Return the states of chains, those that are lost replaced by those of the others in turn."""
    kept = jnp.argsort(lost, stable=True)  # who is kept, and then the lost
    index = jnp.arange(lost.size)
    source = jnp.where(lost, kept[index % jnp.maximum(jnp.sum(~lost), 1)], index)
    return jax.tree.map(lambda a: a[source], state)
