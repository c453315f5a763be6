"""The evidence lower bound with its divergence from a standard Gaussian in closed form."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxinf.core import Key
from jaxinf.grad import averaged
from jaxinf.vi.checks import check_least
from jaxinf.vi.objective import Info, info
from jaxinf.vi.pair import draws_of


@dataclass(frozen=True)
class AnalyticELBO:
    """See :func:`analytic_elbo`."""

    draws: int

    def __call__(self, key: Key, measures: Any) -> tuple[Float[Array, ""], Info]:
        """Return minus the bound."""
        p, q = measures.p, measures.q
        if not (hasattr(p, "log_likelihood") and hasattr(q, "standard_divergence")):
            raise TypeError(
                f"{type(p).__name__} needs log_likelihood(z) over a standard Gaussian prior, and "
                f"{type(q).__name__} standard_divergence(): take vi.autoencoder(...).pair(x), or "
                "vi.elbo(), which needs neither."
            )
        draw = draws_of(key, measures, self.draws)
        likelihood = jax.vmap(jax.vmap(p.log_likelihood))(draw.values)
        loss = q.standard_divergence() + averaged(-likelihood, draw)
        return loss, info(-loss, draw)


def analytic_elbo(draws: int = 1) -> AnalyticELBO:
    r"""The evidence lower bound under a standard Gaussian prior, its divergence in closed form.

    .. math:: L = -\mathrm{KL}(q(z \mid x) \,\|\, N(0, I))
              + \frac1K \sum_{k=1}^K \log p(x \mid z_k), \qquad z_k \sim q(z \mid x)

    Estimator B of the paper; :func:`elbo` is estimator A. Its gradients usually vary less: always
    in q's mean, where the decoder is linear and Gaussian. Its value does not where q is the
    posterior, as estimator A's is then the evidence at every draw.

    Args:
      draws: K.

    Returns:
      The objective, for pairs whose p has ``log_likelihood(z)`` and whose q has
      ``standard_divergence()``: those of :func:`autoencoder`.

    Raises:
      ValueError: for fewer than one draw.
      TypeError: at a call with other pairs.

    Reference:
      D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), eq. 7 and appendix B.
    """
    check_least(draws=draws)
    return AnalyticELBO(draws)
