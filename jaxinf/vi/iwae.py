"""Importance-weighted bounds."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key
from jaxinf.grad import reduced
from jaxinf.vi.checks import check_least
from jaxinf.vi.objective import Info, info
from jaxinf.vi.pair import Weighed, draws_of, frozen, single


class GradientPath(Enum):
    """How q is differentiated where draws are differentiated through."""

    TOTAL = "total"
    """By its density and through the draws."""
    STICKING = "sticking"
    """Through the draws alone: biased."""
    DOUBLY = "doubly"
    """Doubly reparameterised: through the draws alone, by squared weights; unbiased."""


def log_mean(log_weights: Array) -> Array:
    """Return the logarithm of the mean weight."""
    return jax.nn.logsumexp(log_weights) - jnp.log(log_weights.shape[0])


@dataclass(frozen=True)
class IWAE:
    """See :func:`iwae`."""

    draws: int
    path: GradientPath

    def __call__(self, key: Key, measures: Any) -> tuple[Float[Array, ""], Info]:
        """Return minus the bound."""
        drawn = draws_of(key, measures, self.draws)
        draw = single(drawn)
        if self.path is GradientPath.TOTAL:
            bound = reduced(log_mean, draw.log_p - draw.log_q, drawn)
        else:
            bound = self._through(measures, draw)
        return -bound, info(bound, draw)

    def _through(self, measures: Any, draw: Weighed) -> Array:
        """Return the bound, q's numbers being differentiated through the draws alone."""
        log_q = jax.vmap(frozen(measures.q).log_prob)(draw.values)
        value = log_mean(jax.lax.stop_gradient(draw.log_p - log_q))
        shares = jax.nn.softmax(jax.lax.stop_gradient(draw.log_p - log_q))
        if self.path is GradientPath.STICKING:
            return log_mean(draw.log_p - log_q)
        # p's numbers have the usual gradient at draws that are held, q's the squares' through them
        moved = jax.vmap(frozen(measures.p).log_prob)(draw.values) - log_q
        held = jax.vmap(measures.p.log_prob)(jax.lax.stop_gradient(draw.values))
        slope = jnp.sum(jnp.square(shares) * moved) + jnp.sum(shares * held)
        return value + slope - jax.lax.stop_gradient(slope)


def iwae(draws: int = 5, *, path: GradientPath = GradientPath.TOTAL) -> IWAE:
    r"""The importance-weighted bound.

    .. math:: L_K = E\Bigl[\log \frac1K \sum_{k=1}^K \frac{p(x_k)}{q(x_k)}\Bigr], \qquad
              L_1 \le L_2 \le \dots \le \log Z

    Sites with scores get VIMCO's estimator.

    Args:
      draws: K.
      path: how q is differentiated where draws are differentiated through. Doubly
        reparameterised it is :math:`\sum_k \tilde w_k^2\, \nabla_x \log w_k\, \nabla x_k`, whose
        signal does not fade as K grows.

    Returns:
      The objective.

    Raises:
      ValueError: for fewer than one draw.

    Reference:
      Y. Burda, R. Grosse and R. Salakhutdinov, "Importance weighted autoencoders" (2016), eq. 8;
      G. Tucker, D. Lawson, S. Gu and C. J. Maddison, "Doubly reparameterized gradient estimators
      for Monte Carlo objectives" (2019), eq. 8.
    """
    check_least(draws=draws)
    return IWAE(draws, path)
