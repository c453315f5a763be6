"""Who survives: ancestors drawn from log-weights, each scheme with its own variance."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinf.core import Key, divide, record, static


@runtime_checkable
class Scheme(Protocol):
    """A way to draw ancestors; hashable, and static in compiled programs."""

    def __call__(
        self, key: Key, log_weights: Float[Array, " n"], count: int | None = None
    ) -> Int[Array, " count"]:
        """Draw ``count`` ancestors, n by default, from weights of which one at least is not 0."""
        ...


def multinomial(
    key: Key, log_weights: Float[Array, " n"], count: int | None = None
) -> Int[Array, " count"]:
    r"""Independent ancestors: :math:`P(A_j = i) = W_i`.

    The uniforms are drawn in order, as partial sums of exponentials over their total.

    Args:
      key: a typed key.
      log_weights: up to a constant; -inf is a weight of 0, and such a particle is never drawn.
      count: how many ancestors; n by default.

    Returns:
      Indices in rising order, with E[number of i] = count W_i.

    Reference:
      N. Gordon, D. Salmond and A. Smith, "Novel approach to nonlinear/non-Gaussian Bayesian state
      estimation", 1993; L. Devroye, "Non-Uniform Random Variate Generation", 1986, V.3 (order).
    """
    count = count or log_weights.size
    sums = jnp.cumsum(jax.random.exponential(key, (count + 1,), log_weights.dtype))
    return _invert(log_weights, sums[:-1] / sums[-1])


def stratified(
    key: Key, log_weights: Float[Array, " n"], count: int | None = None
) -> Int[Array, " count"]:
    r"""One uniform in each of ``count`` equal strata: :math:`u_j = (j + U_j) / \text{count}`.

    Args:
      key: a typed key.
      log_weights: up to a constant; -inf is a weight of 0, and such a particle is never drawn.
      count: how many ancestors; n by default.

    Returns:
      Indices in rising order, with E[number of i] = count W_i.

    Reference:
      G. Kitagawa, "Monte Carlo filter and smoother for non-Gaussian nonlinear state space models",
      1996, appendix.
    """
    count = count or log_weights.size
    u = jax.random.uniform(key, (count,), log_weights.dtype)
    return _invert(log_weights, (jnp.arange(count) + u) / count)


def systematic(
    key: Key, log_weights: Float[Array, " n"], count: int | None = None
) -> Int[Array, " count"]:
    r"""One uniform for all strata: :math:`u_j = (j + U) / \text{count}`.

    The number of i's is ``count W_i`` rounded down or up.

    Args:
      key: a typed key.
      log_weights: up to a constant; -inf is a weight of 0, and such a particle is never drawn.
      count: how many ancestors; n by default.

    Returns:
      Indices in rising order, with E[number of i] = count W_i.

    Reference:
      J. Carpenter, P. Clifford and P. Fearnhead, "Improved particle filter for nonlinear problems",
      1999.
    """
    count = count or log_weights.size
    u = jax.random.uniform(key, (), log_weights.dtype)
    return _invert(log_weights, (jnp.arange(count) + u) / count)


def residual(
    key: Key, log_weights: Float[Array, " n"], count: int | None = None
) -> Int[Array, " count"]:
    r"""First :math:`\lfloor \text{count}\, W_i \rfloor` of each i, the rest independent.

    Args:
      key: a typed key.
      log_weights: up to a constant; -inf is a weight of 0, and such a particle is never drawn.
      count: how many ancestors; n by default.

    Returns:
      Indices, with E[number of i] = count W_i.

    Reference:
      J. Liu and R. Chen, "Sequential Monte Carlo methods for dynamic systems", 1998.
    """
    count = count or log_weights.size
    expected = count * jax.nn.softmax(log_weights)
    sure = jnp.floor(expected)
    ends = jnp.cumsum(sure.astype(jnp.int32))
    place = jnp.arange(count)
    fixed = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
    u = jax.random.uniform(key, (count,), log_weights.dtype)
    free = _invert(jnp.log(expected - sure), u)
    return jnp.where(place < ends[-1], fixed, free)


@record
class Metropolis:
    """Chains over indices; see :func:`metropolis`."""

    steps: int = static()

    def __call__(
        self, key: Key, log_weights: Float[Array, " n"], count: int | None = None
    ) -> Int[Array, " count"]:
        """Draw ancestors."""
        n = log_weights.size
        count = count or n

        def step(here: Array, key: Key) -> tuple[Array, None]:
            key_there, key_accept = jax.random.split(key)
            there = jax.random.randint(key_there, (count,), 0, n)
            u = jax.random.uniform(key_accept, (count,), log_weights.dtype)
            up, down = log_weights[there], log_weights[here]
            taken = (jnp.log(u) < up - down) | (down == -jnp.inf)
            return jnp.where(taken, there, here), None

        # from an own place each, as type and as number: weights may vary over a mesh
        start = jnp.arange(count) % n + 0 * jnp.argmax(log_weights)
        return jax.lax.scan(step, start.astype(jnp.int32), jax.random.split(key, self.steps))[0]


def metropolis(steps: int) -> Metropolis:
    r"""A Metropolis chain over the indices for each ancestor: ratios of weights, and no sum.

    Each chain starts at its own place and proposes uniform indices. It is biased: after B steps

    .. math:: \| P(A_j = \cdot) - W \|_{TV} \le \Bigl(1 - \frac{1}{n \max_i W_i}\Bigr)^B,

    since the uniform proposal is at least :math:`1 / (n \max W)` of W, so that each step forgets
    where it was with that probability. A particle of weight 0 can survive.

    Args:
      steps: B.

    Returns:
      A :class:`Scheme`.

    Raises:
      ValueError: when there is no step.

    Reference:
      L. Murray, A. Lee and P. Jacob, "Parallel resampling in the particle filter", 2016.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    return Metropolis(steps)


def _invert(log_weights: Array, u: Array) -> Array:
    """Return for each u in [0, 1) the first index whose cumulative weight exceeds it."""
    top = jnp.max(log_weights)
    weights = jnp.exp(log_weights - jnp.where(jnp.isfinite(top), top, 0))
    # sums in another order than from left to right need not rise, nor stay over a weight of 0
    sums = jax.lax.cummax(jnp.where(weights > 0, jnp.cumsum(weights), 0))
    below = 1 - jnp.finfo(u.dtype).epsneg
    place = jnp.searchsorted(divide(sums, sums[-1]), jnp.minimum(u, below), side="right")
    return jnp.minimum(place, log_weights.size - 1).astype(jnp.int32)
