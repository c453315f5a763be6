"""Laws on finitely many states, in log space."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinf.core.record import record
from jaxinf.core.types import Key, Leaf

NOWHERE = -1
"""What is drawn from a law without mass; a state that no kernel leads out of."""


@record
class Finite:
    """A law on the states 0, ..., n - 1 by the logarithms of their probabilities, in nats.

    A law without mass, all of them -inf, is what a posterior is where nothing could have led: it is
    carried along, its draws are :data:`NOWHERE`, and it never becomes NaN.
    """

    log_probs: Leaf

    def sample(self, key: Key) -> Int[Array, ""]:
        """Draw a state."""
        draw = jax.random.categorical(key, self.log_probs)
        return jnp.where(jnp.any(self.log_probs > -jnp.inf), draw, NOWHERE)

    def log_prob(self, x: Int[Array, ""]) -> Float[Array, ""]:
        """Log probability of a state, in nats."""
        return jnp.where(jnp.asarray(x) < 0, -jnp.inf, self.log_probs[x])


def normalise(log_weights: Array, axis: int = -1) -> tuple[Array, Array]:
    """Return log probabilities and the logarithm of the sum; without mass all stay -inf."""
    total = jax.nn.logsumexp(log_weights, axis=axis, keepdims=True)
    shift = jnp.where(total > -jnp.inf, total, 0)
    return log_weights - shift, jnp.squeeze(total, axis)


def finite(probabilities: Float[Array, " n"]) -> Finite:
    """A law on finitely many states.

    Args:
      probabilities: shape (n,), not negative, with sum one.

    Returns:
      The law, with ``sample(key)`` and ``log_prob(x)``.

    Raises:
      ValueError: for concrete numbers that are no probabilities.
    """
    check_probabilities(probabilities, "probabilities")
    return Finite(jnp.log(jnp.asarray(probabilities)))


def check_probabilities(p: Array, name: str) -> None:
    """Raise for a concrete array whose rows are not probabilities."""
    if isinstance(p, jax.core.Tracer):
        return
    p = jnp.asarray(p)
    if not bool(jnp.all(p >= 0)):
        raise ValueError(f"{name} must not be negative, got a smallest one of {float(p.min())}.")
    sums = jnp.sum(p, axis=-1)
    error = float(jnp.max(jnp.abs(sums - 1)))
    if not error <= 10 * p.shape[-1] * float(jnp.finfo(p.dtype).eps):
        worst = float(sums.ravel()[jnp.argmax(jnp.abs(sums - 1))])
        raise ValueError(
            f"{name} must sum to one in every row, got a row with sum {worst}; divide by "
            f"{name}.sum(-1, keepdims=True) if they are weights."
        )
