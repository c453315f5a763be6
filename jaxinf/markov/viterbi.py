"""The most probable path of finite states."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxinf.markov.state_space import StateSpace, along, at, check_observations, likelihoods


def viterbi(
    model: StateSpace, observations: Array, *, observed: Bool[Array, " T"] | None = None
) -> tuple[Int[Array, " T"], Float[Array, ""]]:
    r"""The most probable path given the observations.

    The messages of :func:`backward_filter` with the largest in place of the sum,
    :math:`v_t(x) = e_t(x) \max_y k(y \mid x) v_{t+1}(y)`, and then the best move from the start on.

    Args:
      model: a state space of finite kernels.
      observations: shape (T,).
      observed: which of them are there; all by default.

    Returns:
      The path, and the logarithm of its probability together with the observations, in nats.

    Reference: Viterbi, "Error Bounds for Convolutional Codes" (1967).
    """
    return _viterbi(model, *check_observations(observations, observed))


@jax.jit
def _viterbi(model: Any, observations: Array, observed: Array) -> tuple[Array, Array]:
    """See :func:`viterbi`."""
    seen = likelihoods(model, observations, observed).log_values

    def back(later: Array, slot: Any) -> tuple[Array, Array]:
        likelihood, transition = slot
        moves = at(model.transition, transition).log_matrix + later[None, :]
        return likelihood + jnp.max(moves, axis=1), jnp.argmax(moves, axis=1)

    slots = seen[:-1], along(model.transition)
    first, best = jax.lax.scan(back, seen[-1], slots, reverse=True)
    total = model.initial.log_probs + first
    start = jnp.argmax(total)

    def go(x: Array, best: Array) -> tuple[Array, Array]:
        return best[x], best[x]

    _, path = jax.lax.scan(go, start, best)
    return jnp.concatenate([start[None], path]), jnp.max(total)
