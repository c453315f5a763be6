"""The Crank-Nicolson move of targets with a Gaussian prior, whatever their dimension."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Gaussian, Key, Leaf, record, white
from jaxinf.mcmc.kernel import Info, State, check_step_size, choose
from jaxinf.target import Target


@record
class CrankNicolson:
    """The transition; see :func:`crank_nicolson`."""

    step_size: Leaf
    metric: Leaf
    """Not used: the prior's covariance scales the steps."""

    @property
    def goal(self) -> float:
        """The acceptance that warm-up seeks."""
        return 0.234

    def probe(self) -> "CrankNicolson":
        """Return the kernel itself, which is as cheap as they come."""
        return self

    def init(self, target: Target, z: Float[Array, " dim"]) -> State:
        """Return a chain's state at a position; gradients are neither taken nor needed."""
        _mean(target)
        return State(z, target.log_prob(z), jnp.zeros_like(z))

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        """Propose a step of the prior's own process, and take it by the likelihood, or stay."""
        key_step, key_accept = jax.random.split(key)
        mean, fourth = _mean(target), jnp.square(self.step_size) / 4
        noise = target.sample_prior(key_step) - mean
        moved = ((1 - fourth) * (state.z - mean) + self.step_size * noise) / (1 + fourth)
        new = self.init(target, mean + moved)
        ratio = (new.log_prob - target.log_prior(new.z)) - (
            state.log_prob - target.log_prior(state.z)
        )
        accept = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(ratio), -jnp.inf, ratio), 0))
        taken = jax.random.uniform(key_accept, dtype=accept.dtype) < accept
        zero: Array = jnp.zeros((), jnp.int32)
        new = choose(taken, new, state)
        return new, Info(accept, zero > 0, -new.log_prob, zero)


def _mean(target: Any) -> Array:
    """Return the mean of a target's Gaussian prior."""
    prior = getattr(target, "prior", None)
    if not isinstance(prior, Gaussian):
        raise TypeError(
            "Crank-Nicolson moves need a Gaussian prior: build the target by "
            "target.density(..., prior=core.gaussian(mean, covariance)), or move by "
            "mcmc.random_walk()."
        )
    return target.layout.join(prior.mean)


def crank_nicolson(step_size: float = 0.5) -> CrankNicolson:
    r"""Metropolis by steps that leave the Gaussian prior N(m, C) as it is.

    .. math:: z' - z = -\tfrac{\epsilon^2}{2} \Bigl(\frac{z + z'}{2} - m\Bigr) + \epsilon L \xi,
              \qquad \alpha = \min\Bigl(1, \frac{L(z')}{L(z)}\Bigr)

    Only the likelihood decides, so the acceptance does not fall as the prior gets more numbers:
    for functions, and for the innovations of guided paths (:func:`jaxinf.markov.guided_path`). A
    step of 2 draws from the prior anew.

    Args:
      step_size: epsilon; warm-up adapts it.

    Returns:
      A :class:`Kernel` for targets made by ``target.density(prior=core.gaussian(...))``.

    Raises:
      ValueError: when the step size is not positive. Targets without a Gaussian prior raise a
      TypeError where the chain starts.

    Reference:
      S. Cotter, G. Roberts, A. Stuart and D. White, "MCMC methods for functions: modifying old
      algorithms to make them faster", Statistical Science 2013.
    """
    check_step_size(step_size)
    return CrankNicolson(step_size, white())
