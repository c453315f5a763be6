"""What every transition kernel of a chain is, and the leapfrog step that most of them take."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxinf.core import Covariance, Key, Leaf, Scalar
from jaxinf.target import Target

DIVERGED = 1000.0
"""An error of the energy, in nats, from which a trajectory counts as diverged."""


class State(NamedTuple):
    """Where a chain is."""

    z: Float[Array, " dim"]
    log_prob: Float[Array, ""]
    gradient: Float[Array, " dim"]
    """Of the log density."""


class Info(NamedTuple):
    """What a transition did."""

    acceptance: Float[Array, ""]
    """The mean probability of acceptance of what was proposed."""
    diverged: Bool[Array, ""]
    """Whether the energy went off by more than a thousand nats, or to what is not a number."""
    energy: Float[Array, ""]
    """Of the new state with the momentum that led to it."""
    gradients: Int[Array, ""]
    """How many gradients of the log density were taken."""


@runtime_checkable
class Kernel(Protocol):
    """A transition that leaves a target's density as it is; one chain, batches by ``jax.vmap``."""

    @property
    def step_size(self) -> Leaf:
        """Of a step, in the metric's standard deviations."""
        ...

    @property
    def metric(self) -> Leaf:
        """The covariance by which steps are scaled, about the target's own."""
        ...

    @property
    def goal(self) -> float:
        """The acceptance that warm-up seeks."""
        ...

    def probe(self) -> "Kernel":
        """Return a cheap kernel whose acceptance tells whether the step size is of the order."""
        ...

    def init(self, target: Target, z: Float[Array, " dim"]) -> State:
        """Return a chain's state at a position."""
        ...

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        """Take one transition."""
        ...


def begin(target: Target, z: Float[Array, " dim"]) -> State:
    """Return the state at a position."""
    return State(z, *jax.value_and_grad(target.log_prob)(z))


def leapfrog(
    target: Target, metric: Covariance, step_size: Scalar, state: State, r: Array
) -> tuple[State, Array]:
    r"""One step of Hamilton's equations for the energy -log pi(z) + |r|^2 / 2.

    .. math:: r' = r + \tfrac\epsilon2 L^\top \nabla\log\pi(z), \quad z' = z + \epsilon L r', \quad
              r'' = r' + \tfrac\epsilon2 L^\top \nabla\log\pi(z')

    with the metric C = L L^T: the momentum is white, and its velocity L r. That is the usual
    leapfrog with mass C^-1 and momentum L^-T r.
    """
    half = step_size / 2
    r = r + half * metric.sqrt_transpose(state.gradient)
    state = begin(target, state.z + step_size * metric.sqrt(r))
    return state, r + half * metric.sqrt_transpose(state.gradient)


def energy(state: State, r: Array) -> Float[Array, ""]:
    """Return -log pi(z) + |r|^2 / 2, infinite where it is not a number."""
    value = jnp.sum(jnp.square(r)) / 2 - state.log_prob
    return jnp.where(jnp.isnan(value), jnp.inf, value)


def choose(accept: Any, new: State, old: State) -> State:
    """Return one of two states."""
    return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)


def check_step_size(step_size: float) -> None:
    """Raise for a step that is not positive."""
    if not isinstance(step_size, jax.core.Tracer) and not step_size > 0:
        raise ValueError(f"step_size must be positive, got {step_size}.")
