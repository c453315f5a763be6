"""The evidence lower bound."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxinf.core import Key
from jaxinf.grad import averaged
from jaxinf.vi.checks import check_least
from jaxinf.vi.objective import Info, info
from jaxinf.vi.pair import draws_of, frozen


@dataclass(frozen=True)
class ELBO:
    """See :func:`elbo`."""

    draws: int
    sticking: bool

    def __call__(self, key: Key, measures: Any) -> tuple[Float[Array, ""], Info]:
        """Return minus the bound."""
        draw = draws_of(key, measures, self.draws)
        log_q = draw.log_q
        if self.sticking:
            _, log_q = jax.vmap(jax.vmap(frozen(measures).evaluate))(draw.values)
        loss = averaged(log_q - draw.log_p, draw)
        return loss, info(-loss, draw)


def elbo(draws: int = 1, *, sticking: bool = False) -> ELBO:
    r"""The evidence lower bound, by the measures' own strategies.

    .. math:: L = E_q[\log p(x) - \log q(x)] = \log Z - \mathrm{KL}(q \,\|\, p / Z)

    Args:
      draws: over which the estimate is averaged; with two or more, sites with scores have the
        others' mean as their baseline.
      sticking: whether q's density is differentiated through the draw alone ("sticking the
        landing"): unbiased, and without variance where q is the posterior. For draws that are
        differentiated through.

    Returns:
      The objective.

    Raises:
      ValueError: for fewer than one draw.

    Reference:
      D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), eq. 3; G. Roeder, Y. Wu
      and D. Duvenaud, "Sticking the landing" (2017), eq. 8.
    """
    check_least(draws=draws)
    return ELBO(draws, sticking)
