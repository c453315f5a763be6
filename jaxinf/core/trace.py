"""Traces of Jacobians, exact or estimated from matrix-free products."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core.record import record, static
from jaxinf.core.types import Key


@runtime_checkable
class Trace(Protocol):
    """An estimator of the trace of a field's Jacobian."""

    def probes(self, key: Key, x: Array) -> Float[Array, "probes *event"]:
        """Return the directions along which the Jacobian is probed."""
        ...

    def trace(self, products: Float[Array, "probes *event"], probes: Array) -> Array:
        """Return the estimates, shape (estimates,), from the products J v of the probes v."""
        ...


@record
class Exact:
    """The trace itself, by one product a coordinate."""

    def probes(self, key: Key | None, x: Array) -> Float[Array, "probes *event"]:
        """Return the coordinate directions."""
        return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)

    def trace(self, products: Array, probes: Array) -> Float[Array, "1"]:
        """Return the sum of the Jacobian's diagonal."""
        return jnp.sum(products * probes)[None]


@record
class Hutchinson:
    """Hutchinson's estimator, one estimate v^T J v a probe, unbiased for E[v v^T] = I."""

    count: int = static()

    def probes(self, key: Key, x: Array) -> Float[Array, "probes *event"]:
        """Return Rademacher directions."""
        return jax.random.rademacher(key, (self.count, *x.shape), x.dtype)

    def trace(self, products: Array, probes: Array) -> Float[Array, " probes"]:
        """Return v^T J v for each probe."""
        return jnp.sum((products * probes).reshape(self.count, -1), axis=1)


def exact() -> Exact:
    """The exact trace; costs as many directional derivatives as the example has numbers."""
    return Exact()


def hutchinson(probes: int = 1) -> Hutchinson:
    """Hutchinson's trace estimator with Rademacher probes.

    tr J = E[v^T J v] for v with independent signs; its variance is 2 (|J|_F^2 - sum_i J_ii^2) for
    a symmetric J.

    Args:
      probes: how many directions, at least 1.

    Returns:
      The estimator.

    Raises:
      ValueError: for fewer than one probe.

    Reference:
      A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines,
      M. F. Hutchinson, 1989.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}; core.exact() needs none")
    return Hutchinson(probes)


def value_and_trace(
    trace: Trace, field: Callable[[Array], Array], x: Array, probes: Array
) -> tuple[Array, Float[Array, " estimates"]]:
    """Return field(x) and the estimates of the trace of its Jacobian, in one linearisation."""
    value, jacobian = jax.linearize(field, x)
    return value, trace.trace(jax.vmap(jacobian)(probes), probes)
