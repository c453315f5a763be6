"""The direction of kernel Stein discrepancy descent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Leaf, record
from jaxinf.mc.radial import Radial, rbf
from jaxinf.target import Target


@record
class KSD:
    """The direction; see :func:`ksd`."""

    kernel: Leaf

    def discrepancy(self, target: Target, particles: Float[Array, "n dim"]) -> Float[Array, ""]:
        """Return the squared discrepancy of the particles as a law, the V-statistic."""
        n, dim = particles.shape
        scores = jax.vmap(jax.grad(target.log_prob))(particles)
        apart = particles[:, None] - particles[None]
        squares = jnp.sum(jnp.square(apart), -1)
        k, slope, curve = self.kernel(squares)
        inner = jnp.matmul(scores, scores.T, precision="highest")
        across = jnp.sum(apart * (scores[None] - scores[:, None]), -1)
        return jnp.sum(inner * k + 2 * slope * (across - dim) - 4 * curve * squares) / n**2

    def __call__(self, target: Target, particles: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """Return n times minus the gradient of half the squared discrepancy."""
        slope = jax.grad(lambda x: self.discrepancy(target, x))(particles)
        return -0.5 * len(particles) * slope


def ksd(kernel: Radial | None = None) -> KSD:
    r"""The direction of kernel Stein discrepancy descent.

    .. math:: \phi(x_i) = -\frac1n \sum_j \nabla_{x_i} k_\pi(x_j, x_i), \qquad
              k_\pi(x, y) = s(x)^\top s(y) k + s(x)^\top \nabla_y k + s(y)^\top \nabla_x k
              + \operatorname{tr} \nabla_x \nabla_y k

    with s the target's score: minus n times the gradient of half the squared kernel Stein
    discrepancy of the particles as a law. It takes second derivatives of the log density. The
    discrepancy has stationary points other than the target: planes of symmetry of a target with
    several modes hold particles that begin there.

    Args:
      kernel: ``rbf(1.0)`` by default, the exponential of minus the squared distance; or ``imq()``.
        ``rbf()`` holds the bandwidth by the median rule fixed within a step.

    Returns:
      A :class:`Direction` for :func:`coin`, with ``discrepancy(target, particles)``.

    Reference:
      A. Korba, P. Aubin-Frankowski, S. Majewski and P. Ablin, "Kernel Stein Discrepancy Descent",
      ICML 2021, equation 10 and algorithm 1; L. Sharrock and C. Nemeth, "Coin Sampling:
      Gradient-Based Bayesian Inference without Learning Rates", ICML 2023.
    """
    return KSD(rbf(1.0) if kernel is None else kernel)
