"""The reverse divergence by scores."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key
from jaxinf.vi.checks import check_least
from jaxinf.vi.objective import Info, info
from jaxinf.vi.pair import held_draws


@dataclass(frozen=True)
class LogDerivative:
    """See :func:`log_derivative`."""

    draws: int

    def __call__(self, key: Key, measures: Any) -> tuple[Float[Array, ""], Info]:
        """Return minus the evidence lower bound."""
        draw, log_p, log_q = held_draws(key, measures, self.draws)
        cost = jax.lax.stop_gradient(log_q - log_p)
        others = (jnp.sum(cost) - cost) / (self.draws - 1)
        slope = jnp.mean((cost - others) * log_q - log_p)
        bound = -jnp.mean(cost)
        return -bound + slope - jax.lax.stop_gradient(slope), info(bound, draw)


def log_derivative(draws: int = 16) -> LogDerivative:
    r"""The evidence lower bound, differentiated by scores of draws that are held.

    .. math:: \nabla \mathrm{KL} = E_q\Bigl[\Bigl(\log \frac{q(x)}{p(x)} - b\Bigr)
              \nabla \log q(x) - \nabla \log p(x)\Bigr]

    with the mean over the other draws for b. Where p has no numbers of its own to be learnt it is
    the log-variance's gradient; where p's are shared with q's it is not, and keeps to the
    divergence that it is named for.

    Args:
      draws: two or more.

    Returns:
      The objective.

    Raises:
      ValueError: for fewer than two draws.

    Reference:
      "Rethinking losses for diffusion bridge samplers" (2025), eq. 9.
    """
    check_least(2, draws=draws)
    return LogDerivative(draws)
