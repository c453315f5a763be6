"""The direction of Stein variational gradient descent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Leaf, record
from jaxinf.mc.radial import Radial, rbf
from jaxinf.target import Target


@record
class SVGD:
    """The direction; see :func:`svgd`."""

    kernel: Leaf

    def __call__(self, target: Target, particles: Float[Array, "n dim"]) -> Float[Array, "n dim"]:
        """Return the kernelised direction of steepest descent of the divergence."""
        scores = jax.vmap(jax.grad(target.log_prob))(particles)
        apart = particles[:, None] - particles[None]  # [i, j] is x_i - x_j
        k, slope, _ = self.kernel(jnp.sum(jnp.square(apart), -1))
        # the gradient of k in x_j is -2 kappa' (x_i - x_j)
        away = jnp.sum(-2 * slope[:, :, None] * apart, axis=1)
        return (jnp.matmul(k, scores, precision="highest") + away) / len(particles)


def svgd(kernel: Radial | None = None) -> SVGD:
    r"""The direction of Stein variational gradient descent.

    .. math:: \phi(x_i) = \frac1n \sum_j \bigl[k(x_j, x_i) \nabla \log\pi(x_j)
              + \nabla_{x_j} k(x_j, x_i)\bigr]

    Particles are drawn to mass and pushed from each other. With finitely many of them the fixed
    point is narrower than the target.

    Args:
      kernel: ``rbf()``, by default, or ``imq()``.

    Returns:
      A :class:`Direction` for :func:`coin`: ``svgd()(target, particles)`` is the direction.

    Reference:
      Q. Liu and D. Wang, "Stein Variational Gradient Descent: A General Purpose Bayesian Inference
      Algorithm", NeurIPS 2016, equation 8.
    """
    return SVGD(rbf() if kernel is None else kernel)
