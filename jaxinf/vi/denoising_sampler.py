"""A noising process of the target, reversed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Diagonal, Gaussian, Leaf, record, static
from jaxinf.vi.annealing import check_sizes
from jaxinf.vi.paths import Kernels


@record
class DenoisingSampler(Kernels):
    """See :func:`denoising_sampler`."""

    params: Leaf
    log_scale: Leaf
    logits: Leaf
    """Of the shares of noise of the steps, [steps]."""
    apply: Callable[..., Any] = static()
    dim: int = static()
    steps: int = static()

    def start(self, target: Any) -> Gaussian:
        """Return the reference."""
        del target
        return Gaussian(jnp.zeros(self.dim), Diagonal(jnp.exp(self.log_scale)))

    def around(self, target: Any, k: Any, state: Array) -> tuple[Gaussian, Gaussian]:
        """Return a step of the noising process, and one of its reversal."""
        scale = jnp.exp(self.log_scale)
        places = jnp.clip(jnp.stack([k - 1, k]), 0, self.steps - 1)
        behind, ahead = jax.nn.sigmoid(self.logits[places])
        u = self.apply(self.params, state, k / self.steps)
        kept = jnp.sqrt(1 - ahead)
        mean = kept * state + 2 * jnp.square(scale) * (1 - kept) * u
        return (
            Gaussian(jnp.sqrt(1 - behind) * state, Diagonal(scale * jnp.sqrt(behind))),
            Gaussian(mean, Diagonal(scale * jnp.sqrt(ahead))),
        )


def denoising_sampler(
    dim: int, steps: int, apply: Callable[..., Any], params: Any, *, scale: float = 1.0
) -> DenoisingSampler:
    r"""The denoising diffusion sampler.

    .. math:: B_k &= N\bigl(\sqrt{1 - \alpha_k}\, x', \sigma^2 \alpha_k I\bigr) \\
              F_k &= N\bigl(\sqrt{1 - \alpha_k}\, x + 2 \sigma^2 (1 - \sqrt{1 - \alpha_k})\,
              u(x, t_k), \sigma^2 \alpha_k I\bigr)

    The noising process keeps :math:`N(0, \sigma^2 I)`, where paths start; without control p and q
    differ by the target's density against it alone.

    Args:
      dim: of the target.
      steps: K.
      apply: u, ``apply(params, x, t)`` of one state and a time in [0, 1].
      params: its parameters.
      scale: sigma.

    Returns:
      The kernels, for :func:`jaxinf.vi.path_measures`; sigma and alpha are learnt too.

    Raises:
      ValueError: for sizes below 1 and a scale that is not positive.

    Reference:
      F. Vargas, W. Grathwohl and A. Doucet, "Denoising diffusion samplers" (2023), eqs. 20 to 24.
    """
    check_sizes(dim, steps, scale)
    share = jnp.clip(1.5 / steps, 0.02, 0.5)
    logits = jnp.full(steps, jnp.log(share / (1 - share)))
    return DenoisingSampler(params, jnp.log(scale), logits, apply, dim, steps)
