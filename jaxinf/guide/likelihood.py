"""What a likelihood offers: its exact log density, and how it tilts a Gaussian belief."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from jaxinf.guide.belief import Apply, Belief


class Tilt(NamedTuple):
    """What an observation says of a belief N(m, V) of the clean example."""

    log_evidence: Float[Array, ""]
    """An approximation of log E[p(y | x_0)] under the belief."""
    gradient: Array
    """Its derivative with respect to m, V held still: the belief's mean moves by V times it."""


@runtime_checkable
class Likelihood(Protocol):
    """p(y | x_0) with the data as leaves, for one example."""

    def log_prob(self, x: Array) -> Float[Array, ""]:
        """Return log p(y | x_0) at a clean example."""
        ...

    def tilt(self, belief: Belief) -> Tilt:
        """Return what the observation says of a belief."""
        ...


def at_a_point(likelihood: Any, mean: Array) -> Tilt:
    """Return the tilt of a belief that is one point."""
    return Tilt(*jax.value_and_grad(likelihood.log_prob)(mean))


def both_ways(function: Callable[[Array], Array], x: Array) -> tuple[Array, Apply, Apply]:
    """Return f(x) and the products v -> H v and v -> H^T v with its derivative H there."""
    value, back = jax.vjp(function, x)
    return value, lambda v: jax.jvp(function, (x,), (v,))[1], lambda v: back(v)[0]
