"""What every comparison of samples asks of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf.core import is_concrete


def check_finite(name: str, x: Array) -> None:
    """Raise for numbers that are not finite, where they can be looked at."""
    if not is_concrete(x):
        return
    wrong = int(jnp.sum(~jnp.isfinite(x)))
    if wrong:
        raise ValueError(
            f"{name} holds {wrong} numbers that are not finite, of {x.size}. Find the runs that "
            "failed, mend or leave them out, and say how many there were."
        )


def check_samples(x: Array, y: Array, least: int = 2) -> tuple[Array, Array]:
    """Return two samples of examples of one shape with the examples flattened, or raise."""
    if x.ndim < 1 or x.shape[1:] != y.shape[1:] or 0 in x.shape[1:]:
        raise ValueError(
            f"x and y must be samples of examples of one shape, got {x.shape} and {y.shape}. "
            "The leading axis counts examples; the others must agree."
        )
    if min(len(x), len(y)) < least:
        raise ValueError(
            f"x and y must hold at least {least} examples each, got {len(x)} and {len(y)}. "
            "Draw more."
        )
    check_finite("x", x)
    check_finite("y", y)
    return x.reshape(len(x), -1), y.reshape(len(y), -1)


def check_runs(truth: Array, draws: Array) -> None:
    """Raise unless there is one true value for the draws of every run."""
    if truth.ndim < 1 or draws.ndim < 2 or (draws.shape[0], *draws.shape[2:]) != truth.shape:
        raise ValueError(
            f"truth must have shape (runs, ...) and draws (runs, draws, ...), got {truth.shape} "
            f"and {draws.shape}. Of chains [runs, chains, draws, ...] pass "
            "draws.reshape(runs, -1, ...)."
        )
    if truth.shape[0] < 2 or draws.shape[1] < 1 or 0 in truth.shape:
        raise ValueError(
            f"at least two runs with one draw each are needed, got shapes {truth.shape} and "
            f"{draws.shape}. Simulate more data sets, or thin less."
        )
    check_finite("truth", truth)
    check_finite("draws", draws)


def squared_distances(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Return |x_i - y_j|^2, from the differences so that none is lost to rounding."""
    return jnp.sum(jnp.square(x[:, None] - y[None]), axis=-1)


def off_diagonal(n: int) -> Bool[Array, "n n"]:
    """Return which pairs are of two different examples."""
    return ~jnp.eye(n, dtype=bool)


def p_value(statistic: Float[Array, ""], null: Float[Array, " replicates"]) -> Float[Array, ""]:
    """Return (1 + #{null >= statistic}) / (1 + replicates), which is valid at any number."""
    size = jnp.asarray(null.shape[0], statistic.dtype)
    return (1 + jnp.sum(null >= statistic).astype(statistic.dtype)) / (1 + size)


def in_ranks(key: Array, below: Array, ties: Array) -> Array:
    """Return ranks in which ties are broken by a coin of as many sides as there are places."""
    return below + jax.random.randint(key, below.shape, 0, ties + 1)
