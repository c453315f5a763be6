"""The Markovian projection of D-IMF for Gaussian pairs, in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Dense, Gaussian, Key, Leaf, Scalar, first, record, rest, static
from jaxinf.guide.checks import check_bridge
from jaxinf.guide.couplings import Chosen, Independent, Noised, Reversed, Walked
from jaxinf.guide.projection import Info
from jaxinf.guide.schrodinger_gaussian import joint
from jaxinf.markov import LinearGaussian
from jaxinf.markov.linear_gaussian import matrix_of


@record
class GaussianProjection:
    """Linear-Gaussian transitions; see :func:`gaussian_projection`."""

    eps: Leaf
    steps: int = static()

    def init(self, key: Key, x: Float[Array, " d"]) -> LinearGaussian:
        """Return the transitions of white noise: nothing is remembered from an earlier fit."""
        del key
        d, zeros = x.size, jnp.zeros((self.steps, x.size), x.dtype)
        return LinearGaussian(
            jnp.zeros((self.steps, d, d), x.dtype),
            zeros,
            jnp.broadcast_to(jnp.eye(d, dtype=x.dtype), (self.steps, d, d)),
        )

    def fit(self, key: Key, state: LinearGaussian, coupling: Any) -> tuple[LinearGaussian, Info]:
        """Return the transitions of the reciprocal projection of a coupling."""
        del key, state
        pair = law_of(coupling)
        d = pair.mean.size // 2
        covariance = pair.covariance.dense(2 * d)
        times = jnp.arange(self.steps + 1, dtype=covariance.dtype) / self.steps

        def ahead(t: Array) -> Array:
            """Return the matrix of E[x_t | x_0, x_1]."""
            return jnp.concatenate([(1 - t) * jnp.eye(d), t * jnp.eye(d)], axis=1)

        def one(t: Array, s: Array) -> LinearGaussian:
            bridge = self.eps * jnp.eye(d, dtype=covariance.dtype)
            here = ahead(t) @ covariance @ ahead(t).T + t * (1 - t) * bridge
            there = ahead(s) @ covariance @ ahead(s).T + s * (1 - s) * bridge
            across = ahead(s) @ covariance @ ahead(t).T + t * (1 - s) * bridge
            factor = jnp.linalg.cholesky(here)
            white = jax.scipy.linalg.solve_triangular(factor, across.T, lower=True)
            gain = jax.scipy.linalg.solve_triangular(factor, white, lower=True, trans=1).T
            offset = ahead(s) @ pair.mean - gain @ (ahead(t) @ pair.mean)
            return LinearGaussian(gain, offset, jnp.linalg.cholesky(there - white.T @ white))

        return jax.vmap(one)(times[:-1], times[1:]), Info.none()

    def learnt(self, state: LinearGaussian) -> LinearGaussian:
        """Return the transitions."""
        return state

    def step(
        self, params: LinearGaussian, key: Key, k: Array, x: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        """Draw the state at (k + 1) / steps given that at k / steps."""
        return jax.tree.map(lambda leaf: leaf[k], params).sample(key, x)


def gaussian_projection(points: int, eps: Scalar = 1.0) -> GaussianProjection:
    r"""The exact Markovian projection where all pairs are Gaussian.

    The reciprocal projection of a Gaussian coupling, Brownian bridges between its pairs, is
    Gaussian at the times t_k = k / (points + 1) with cov(x_s, x_t) = E_s P E_t' + eps s (1 - t) I
    for s <= t and E_t = ((1 - t) I, t I). Its Markovian projection has the same laws of
    neighbours, transitions

    .. math:: x_{t_{k+1}} \mid x_{t_k} \sim N(B_k x_{t_k} + b_k, V_k), \qquad
              B_k = \mathrm{cov}(x_{t_{k+1}}, x_{t_k}) \, \mathrm{cov}(x_{t_k})^{-1}

    so that the cross covariance of the ends becomes B_N ... B_0 S_0.

    Args:
      points: N, the times between the ends.
      eps: variance of the Brownian reference in a unit of time.

    Returns:
      A projection for :func:`markovian_fitting`; its couplings must be of Gaussian laws.

    Raises:
      ValueError: for no point, where the projection forgets nothing, and an eps not positive.

    Reference:
      N. Gushchin, D. Selikhanovych, S. Kholkin, E. Burnaev and A. Korotin, "Adversarial
      Schroedinger Bridge Matching" (2024): D-IMF of Gaussians.

    Example:
      ``guide.markovian_fitting(key, start, end, guide.gaussian_projection(3), rounds=20)``
    """
    check_bridge(points + 1, eps)
    return GaussianProjection(jnp.asarray(eps, float), points + 1)


def law_of(coupling: Any) -> Gaussian:
    """Return the law of (x_0, x_1), one vector, of a coupling of Gaussian laws."""
    if isinstance(coupling, Chosen):
        laws = [law_of(one) for one in coupling.couplings]
        return jax.lax.switch(coupling.which, [lambda law=law: law for law in laws])
    if isinstance(coupling, Reversed):
        law = law_of(coupling.coupling)
        d = law.mean.size // 2
        swap = jnp.roll(jnp.eye(2 * d, dtype=law.mean.dtype), d, axis=0)
        matrix = swap @ law.covariance.dense(2 * d) @ swap.T
        return Gaussian(swap @ law.mean, Dense(jnp.linalg.cholesky(matrix)))
    if isinstance(coupling, Independent):
        start, end = coupling.start, coupling.end
        d = start.mean.size
        none = jnp.zeros((d, d), start.mean.dtype)
        return joint(start, LinearGaussian(none, end.mean, matrix_of(end.covariance, d)))
    if isinstance(coupling, Noised):
        d = coupling.start.mean.size
        identity = jnp.eye(d, dtype=coupling.start.mean.dtype)
        zero = jnp.zeros_like(coupling.start.mean)
        noise = jnp.sqrt(coupling.eps) * identity
        return joint(coupling.start, LinearGaussian(identity, zero, noise))
    if isinstance(coupling, Walked) and isinstance(coupling.params, LinearGaussian):
        kernels = coupling.params
        whole, _ = jax.lax.scan(lambda a, b: (a.then(b), None), first(kernels), rest(kernels))
        return joint(coupling.law, whole)
    raise TypeError(
        f"the exact projection is of Gaussian couplings, got {type(coupling).__name__}; take "
        "regression_projection(...) or adversarial_projection(...) for pairs that are sampled."
    )
