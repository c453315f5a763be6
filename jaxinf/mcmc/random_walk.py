"""Random-walk Metropolis."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Covariance, Key, Leaf, record, white
from jaxinf.mcmc.kernel import Info, State, check_step_size, choose
from jaxinf.target import Target


@record
class RandomWalk:
    """The transition; see :func:`random_walk`."""

    step_size: Leaf
    metric: Leaf

    @property
    def goal(self) -> float:
        """The acceptance that warm-up seeks."""
        return 0.234

    def probe(self) -> "RandomWalk":
        """Return the kernel itself, which is as cheap as they come."""
        return self

    def init(self, target: Target, z: Float[Array, " dim"]) -> State:
        """Return a chain's state at a position; gradients are neither taken nor needed."""
        return State(z, target.log_prob(z), jnp.zeros_like(z))

    def step(self, key: Key, target: Target, state: State) -> tuple[State, Info]:
        """Propose a step, and take it or stay."""
        key_step, key_accept = jax.random.split(key)
        noise = jax.random.normal(key_step, state.z.shape, state.z.dtype)
        new = self.init(target, state.z + self.step_size * self.metric.sqrt(noise))
        ratio = new.log_prob - state.log_prob
        accept = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(ratio), -jnp.inf, ratio), 0))
        taken = jax.random.uniform(key_accept, dtype=accept.dtype) < accept
        new = choose(taken, new, state)
        zero: Array = jnp.zeros((), jnp.int32)
        return new, Info(accept, zero > 0, -new.log_prob, zero)


def random_walk(step_size: float = 1.0, *, metric: Covariance | None = None) -> RandomWalk:
    r"""Random-walk Metropolis with normal steps, for targets without a gradient.

    .. math:: z' = z + \epsilon L \xi, \qquad \xi \sim N(0, I)

    Args:
      step_size: epsilon; about 2.4 over the dimension's root where the metric is the target's
        covariance; warm-up adapts it.
      metric: C = L L^T; by default white; warm-up adapts it.

    Returns:
      A :class:`Kernel`.

    Raises:
      ValueError: when the step size is not positive.

    Reference:
      A. Gelman, W. Gilks and G. Roberts, "Weak convergence and optimal scaling of random walk
      Metropolis algorithms", Annals of Applied Probability 1997; the acceptance sought is its
      0.234.
    """
    check_step_size(step_size)
    return RandomWalk(step_size, white() if metric is None else metric)
