"""Bridge matching: the Markovian projection in continuous time, by regression of a drift."""

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
class DriftProjection:
    """A diffusion with a learnt drift; see :func:`drift_projection`."""

    eps: Leaf
    margin: Leaf
    decay: Leaf
    network: Any = static()
    optimizer: Any = static()
    budget: Budget
    steps: int = static()

    def init(self, key: Key, x: Float[Array, " d"]) -> Learner:
        """Return an untrained network."""
        return learner(self.network.init(key, x), self.optimizer)

    def fit(self, key: Key, state: Learner, coupling: Any) -> tuple[Learner, Info]:
        """Go on with the regression, on pairs of a coupling."""
        return regress(self, key, state, coupling)

    def learnt(self, state: Learner) -> PyTree:
        """Return the average of the parameters."""
        return state.average

    def drift(self, params: PyTree, t: Scalar, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Return v(x, t) of dx = v dt + eps^(1/2) dW."""
        return self.network.apply(params, x, network_time(jnp.asarray(t, x.dtype)))

    def loss(self, params: PyTree, key: Key, x: Array, end: Array) -> Float[Array, ""]:
        """Return |v(x_t, t) - (x_1 - x_t) / (1 - t)|^2 at a time of chance."""
        clock, noise = jax.random.split(key)
        t = jax.random.uniform(clock, (), x.dtype, self.margin, 1 - self.margin)
        at = brownian_bridge(noise, x, end, 0.0, t, self.eps)
        return jnp.sum(jnp.square(self.drift(params, t, at) - (end - at) / (1 - t)))

    def step(self, params: PyTree, key: Key, k: Array, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Take a step of Euler and Maruyama."""
        t = k.astype(x.dtype) / self.steps
        noise = jax.random.normal(key, x.shape, x.dtype) * jnp.sqrt(self.eps / self.steps)
        return x + self.drift(params, t, x) / self.steps + noise.astype(x.dtype)


def drift_projection(
    network: Any,
    optimizer: Any,
    *,
    eps: Scalar = 1.0,
    steps: int = 20,
    budget: Budget = BUDGET,
    margin: Scalar = 1e-3,
    decay: Scalar = 0.999,
) -> DriftProjection:
    r"""The Markovian projection in continuous time: Diffusion Schroedinger Bridge Matching.

    .. math::
       dX = v(X, t)\,dt + \sqrt\epsilon\,dW, \qquad
       v = \arg\min E\Bigl|v(x_t, t) - \frac{x_1 - x_t}{1 - t}\Bigr|^2, \quad
       x_t \sim N((1 - t) x_0 + t x_1, \epsilon t (1 - t) I)

    with (x_0, x_1) of a coupling and t uniform.

    Args:
      network: v, of :mod:`jaxinf.nets`, with ``init(key, x)`` and ``apply(params, x, t)`` for one
        vector; its t is 5 (t - 1/2).
      optimizer: optax's. Build it once; its state is kept over rounds.
      eps: variance of the Brownian reference in a unit of time, sigma^2 of the paper.
      steps: of Euler and Maruyama, from 0 to 1.
      budget: of one fit, :func:`budget`.
      margin: the times keep from both ends, where the target has infinite variance.
      decay: of the moving average of the parameters by which the process is simulated; 0 for none.

    Returns:
      A projection for :func:`markovian_fitting`.

    Raises:
      ValueError: for no step, and an eps that is not positive.

    Reference:
      Y. Shi, V. De Bortoli, A. Campbell and A. Doucet, "Diffusion Schroedinger Bridge Matching"
      (2023); S. Peluchetti, "Diffusion Bridge Mixture Transports" (2023).

    Example:
      ``guide.drift_projection(nets.mlp(128, 2), optax.adam(1e-3), eps=1.0)``
    """
    check_bridge(steps, eps, least=1)
    eps, margin, decay = (jnp.asarray(number, float) for number in (eps, margin, decay))
    return DriftProjection(eps, margin, decay, network, optimizer, budget, steps)
