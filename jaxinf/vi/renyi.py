"""Renyi's bounds."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key
from jaxinf.grad import reduced
from jaxinf.vi.checks import check_least
from jaxinf.vi.objective import Info, info
from jaxinf.vi.pair import draws_of, single


def _power_mean(order: float, log_weights: Array) -> Array:
    """Return the logarithm of the weights' power mean."""
    if order == 1:
        return jnp.mean(log_weights)
    power = 1 - order
    total = jax.nn.logsumexp(power * log_weights) - jnp.log(log_weights.shape[0])
    return total / power


@dataclass(frozen=True)
class Renyi:
    """See :func:`renyi`."""

    order: float
    draws: int

    def __call__(self, key: Key, measures: Any) -> tuple[Float[Array, ""], Info]:
        """Return minus the bound."""
        drawn = draws_of(key, measures, self.draws)
        draw = single(drawn)
        bound = reduced(partial(_power_mean, self.order), draw.log_p - draw.log_q, drawn)
        return -bound, info(bound, draw)


def renyi(order: float, draws: int = 5) -> Renyi:
    r"""Renyi's bound, estimated with K draws.

    .. math:: L_\alpha = \frac{1}{1 - \alpha} \log E_q\Bigl[\Bigl(\frac{p(x)}{q(x)}\Bigr)
              ^{1 - \alpha}\Bigr]

    0 gives the importance-weighted bound and 1 the evidence lower bound; below 0 the limit bounds
    the evidence from above. With finitely many draws the estimate is biased towards the lower one.

    Args:
      order: alpha.
      draws: K.

    Returns:
      The objective.

    Raises:
      ValueError: for fewer than one draw.

    Reference:
      Y. Li and R. E. Turner, "Renyi divergence variational inference" (2016), eqs. 8 and 15.
    """
    check_least(draws=draws)
    return Renyi(float(order), draws)
