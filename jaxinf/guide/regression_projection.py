"""The Markovian projection of D-IMF on Gaussian transitions, by regression of the end."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, Scalar, record, static
from jaxinf.guide.checks import check_bridge
from jaxinf.guide.couplings import brownian_bridge
from jaxinf.guide.projection import (
    BUDGET,
    Budget,
    Info,
    Learner,
    learner,
    network_time,
    regress,
)


@record
class RegressionProjection:
    """Transitions by a Gaussian guess of the end; see :func:`regression_projection`."""

    eps: Leaf
    decay: Leaf
    network: Any = static()
    optimizer: Any = static()
    budget: Budget
    steps: int = static()

    def init(self, key: Key, x: Float[Array, " d"]) -> Learner:
        """Return an untrained network, and log standard deviations of 0."""
        params = self.network.init(key, x), jnp.zeros((self.steps, x.size), x.dtype)
        return learner(params, self.optimizer)

    def fit(self, key: Key, state: Learner, coupling: Any) -> tuple[Learner, Info]:
        """Go on with the regression, on pairs of a coupling."""
        return regress(self, key, state, coupling)

    def learnt(self, state: Learner) -> PyTree:
        """Return the average of the parameters."""
        return state.average

    def guess(self, params: PyTree, k: Array, x: Float[Array, " d"]) -> tuple[Array, Array]:
        """Return mean and log standard deviation of x_1 given x_t at t = k / steps."""
        weights, log_scale = params
        t = k.astype(x.dtype) / self.steps
        ahead = self.network.apply(weights, x, network_time(t))
        left = jnp.log(self.eps * (1 - t)).astype(x.dtype) / 2
        return x + (1 - t) * ahead, log_scale[k] + left

    def loss(self, params: PyTree, key: Key, x: Array, end: Array) -> Float[Array, ""]:
        """Return minus the log density of the end, less a constant, at a time of chance."""
        clock, noise = jax.random.split(key)
        k = jax.random.randint(clock, (), 0, self.steps)
        at = brownian_bridge(noise, x, end, 0.0, k.astype(x.dtype) / self.steps, self.eps)
        mean, log_scale = self.guess(params, k, at)
        return jnp.sum(jnp.square((end - mean) * jnp.exp(-log_scale)) / 2 + log_scale)

    def step(self, params: PyTree, key: Key, k: Array, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Draw the end, then the bridge to it at the next time."""
        first, second = jax.random.split(key)
        mean, log_scale = self.guess(params, k, x)
        end = mean + jnp.exp(log_scale) * jax.random.normal(first, x.shape, x.dtype)
        t = k.astype(x.dtype)
        return brownian_bridge(second, x, end, t / self.steps, (t + 1) / self.steps, self.eps)


def regression_projection(
    network: Any,
    optimizer: Any,
    *,
    points: int = 3,
    eps: Scalar = 1.0,
    budget: Budget = BUDGET,
    decay: Scalar = 0.999,
) -> RegressionProjection:
    r"""The Markovian projection in a few steps, with a Gaussian guess of the end at each.

    .. math::
       p(x_1 \mid x_{t_k}) \approx N(x_{t_k} + (1 - t_k)\, v(x_{t_k}, t_k), \mathrm{diag}(s_k^2)),
       \qquad x_{t_{k+1}} \sim Q^\epsilon(\cdot \mid x_{t_k}, x_1)

    with t_k = k / (points + 1), fitted by likelihood: v is the drift of bridge matching at t_k, and
    s_k what is left of x_1. It is exact where x_1 given x_{t_k} is normal with independent
    coordinates whose spread depends on the time alone; elsewhere the adversarial projection fits
    what this one cannot. With the number of points the law of the guess ceases to matter.

    Args:
      network: v, as in :func:`drift_projection`.
      optimizer: optax's. Build it once; its state is kept over rounds.
      points: N, the times between the ends.
      eps: variance of the Brownian reference in a unit of time.
      budget: of one fit, :func:`budget`.
      decay: of the moving average of the parameters by which the process is simulated; 0 for none.

    Returns:
      A projection for :func:`markovian_fitting`.

    Raises:
      ValueError: for no point, and an eps that is not positive.

    Reference:
      N. Gushchin et al., "Adversarial Schroedinger Bridge Matching" (2024): D-IMF with
      transitions of a simple family.

    Example:
      ``guide.regression_projection(nets.mlp(128, 2), optax.adam(1e-3), points=3)``
    """
    check_bridge(points + 1, eps)
    eps, decay = jnp.asarray(eps, float), jnp.asarray(decay, float)
    return RegressionProjection(eps, decay, network, optimizer, budget, points + 1)
