"""Hamiltonian Monte Carlo with a fixed number of steps, and Langevin's as its one step."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Covariance, Key, Leaf, record, static, white
from jaxinf.mcmc.kernel import (
    DIVERGED,
    Info,
    State,
    begin,
    check_step_size,
    choose,
    energy,
    leapfrog,
)
from jaxinf.target import Target

UNROLLED = 4
"""Steps of a trajectory up to which it is compiled without a loop, a third faster on a CPU."""


@record
class HMC:
    """The transition; see :func:`hmc`."""

    step_size: Leaf
    metric: Leaf
    steps: int = static()

    @property
    def goal(self) -> float:
        """The acceptance that warm-up seeks."""
        return 0.574 if self.steps == 1 else 0.8

    def probe(self) -> "HMC":
        """Return the kernel of one step."""
        return HMC(self.step_size, self.metric, 1)

    def init(self, target: Target, z: Float[Array, " dim"]) -> State:
        """Return a chain's state at a position."""
        return begin(target, z)

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        """Walk a trajectory and take its end, or stay."""
        key_momentum, key_accept = jax.random.split(key)
        start = jax.random.normal(key_momentum, state.z.shape, state.z.dtype)

        def walk(_: Any, carry: tuple[State, Array]) -> tuple[State, Array]:
            return leapfrog(target, self.metric, self.step_size, *carry)

        unroll = self.steps if self.steps <= UNROLLED else 1
        end, r = jax.lax.fori_loop(0, self.steps, walk, (state, start), unroll=unroll)
        before, after = energy(state, start), energy(end, r)
        accept = jnp.exp(jnp.minimum(before - after, 0))
        taken = jax.random.uniform(key_accept, dtype=accept.dtype) < accept
        new = choose(taken, end, state)
        info = Info(
            acceptance=accept,
            diverged=~(after - before < DIVERGED),
            energy=jnp.where(taken, after, before),
            gradients=jnp.asarray(self.steps, jnp.int32),
        )
        return new, info


def hmc(steps: int = 10, step_size: float = 0.5, *, metric: Covariance | None = None) -> HMC:
    """Hamiltonian Monte Carlo: a trajectory of leapfrog steps with a fresh momentum, or none.

    Args:
      steps: of a trajectory.
      step_size: of a step, in the metric's standard deviations; warm-up adapts it.
      metric: the covariance that scales the steps; by default white; warm-up adapts it.

    Returns:
      A :class:`Kernel`.

    Raises:
      ValueError: when there is no step, or its size is not positive.

    Reference:
      R. Neal, "MCMC using Hamiltonian dynamics", Handbook of Markov Chain Monte Carlo, 2011,
      section 5.3.2.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    check_step_size(step_size)
    return HMC(step_size, white() if metric is None else metric, steps)


def mala(step_size: float = 0.5, *, metric: Covariance | None = None) -> HMC:
    r"""Metropolis-adjusted Langevin: Hamiltonian Monte Carlo of one step.

    .. math:: z' = z + \tfrac{\epsilon^2}{2} C \nabla\log\pi(z) + \epsilon L \xi

    Its acceptance is Hastings' ratio with this proposal, as the energy's change shows.

    Args:
      step_size: epsilon; warm-up adapts it.
      metric: C = L L^T; by default white; warm-up adapts it.

    Returns:
      A :class:`Kernel`.

    Raises:
      ValueError: when the step size is not positive.

    Reference:
      G. Roberts and J. Rosenthal, "Optimal scaling of discrete approximations to Langevin
      diffusions", JRSS B 1998, equation (1); the acceptance sought is its 0.574.
    """
    return hmc(1, step_size, metric=metric)
