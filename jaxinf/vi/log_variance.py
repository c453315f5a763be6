"""The variance of log-weights as a divergence."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key
from jaxinf.vi.checks import check_least
from jaxinf.vi.objective import Info, info
from jaxinf.vi.pair import held_draws


@dataclass(frozen=True)
class LogVariance:
    """See :func:`log_variance`."""

    draws: int

    def __call__(self, key: Key, measures: Any) -> tuple[Float[Array, ""], Info]:
        """Return half the variance."""
        draw, log_p, log_q = held_draws(key, measures, self.draws)
        log_w = log_p - log_q
        return 0.5 * jnp.var(log_w, ddof=1), info(jnp.mean(log_w), draw)


def log_variance(draws: int = 16) -> LogVariance:
    r"""Half the variance of log-weights under draws that are held.

    .. math:: \tfrac12 \mathrm{Var}_q\bigl(\log p(x) - \log q(x)\bigr)

    Its gradient in q is in expectation that of the evidence lower bound, with a baseline; nothing
    is differentiated through draws. Zero, with zero variance, where q is the posterior.

    Args:
      draws: two or more.

    Returns:
      The objective.

    Raises:
      ValueError: for fewer than two draws.

    Reference:
      L. Richter, A. Boustati, N. Nusken, F. J. R. Ruiz and O. D. Akyildiz, "VarGrad: a low-variance
      gradient estimator for variational inference" (2020), eq. 10.
    """
    check_least(2, draws=draws)
    return LogVariance(draws)
