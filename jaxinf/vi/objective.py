"""What an objective is, and what it says of itself."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinf.core import Key
from jaxinf.vi.pair import Weighed


class Info(NamedTuple):
    """What a draw of an objective was."""

    bound: Float[Array, ""]
    """The estimate of the bound on the log-evidence, in nats; greater is better."""
    invalid: Int[Array, ""]
    """How many of its log densities were NaN or infinite."""


@runtime_checkable
class Objective(Protocol):
    """A number to be made small, whose derivative is an estimate of the objective's."""

    def __call__(self, key: Key, measures: Any) -> tuple[Float[Array, ""], Info]:
        """Return the loss and what it was made of."""
        ...


def info(bound: Array, draw: Weighed) -> Info:
    """Return what a bound was made of."""
    bad = ~jnp.isfinite(draw.log_p - draw.log_q)
    return Info(jax.lax.stop_gradient(bound), jnp.sum(bad, dtype=jnp.int32))
