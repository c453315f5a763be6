"""The forward divergence: from the posterior to what approximates it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key
from jaxinf.vi.checks import check_least
from jaxinf.vi.iwae import log_mean
from jaxinf.vi.objective import Info, info
from jaxinf.vi.pair import held_draws


@dataclass(frozen=True)
class ForwardKL:
    """See :func:`forward_kl`."""

    draws: int

    def __call__(self, key: Key, measures: Any) -> tuple[Float[Array, ""], Info]:
        """Return the cross-entropy, and minus the bound in p's numbers."""
        draw, log_p, log_q = held_draws(key, measures, self.draws)
        log_w = jax.lax.stop_gradient(log_p - log_q)
        shares = jax.nn.softmax(log_w)
        loss = -jnp.sum(shares * (log_q + log_p))
        return loss, info(log_mean(log_w), draw)


def forward_kl(draws: int = 16) -> ForwardKL:
    r"""The forward divergence by self-normalised weights (reweighted wake-sleep).

    .. math:: \nabla_q = -\sum_k \tilde w_k \nabla \log q(x_k), \qquad
              \nabla_p = -\sum_k \tilde w_k \nabla \log p(x_k)

    The first is the wake phase of the recognition model, the second the importance-weighted bound's
    gradient. Biased by O(1 / K); nothing is differentiated through draws, so any site will do.

    Args:
      draws: K, two or more.

    Returns:
      The objective.

    Raises:
      ValueError: for fewer than two draws.

    Reference:
      J. Bornschein and Y. Bengio, "Reweighted wake-sleep" (2015), eqs. 8 and 10.
    """
    check_least(2, draws=draws)
    return ForwardKL(draws)
