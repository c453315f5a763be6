"""Draws that are differentiated through the distribution function that they satisfy."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxinf.core import Key
from jaxinf.grad.strategy import Once, Site, base, kind, plain


@dataclass(frozen=True)
class Implicit(Once):
    """See :func:`implicit`."""

    def refusal(self, law: Any) -> str | None:
        """Return why the law has no distribution function to differentiate."""
        if law.is_discrete:
            return (
                f"a {kind(law)} has no smooth distribution function: take grad.score_function() or "
                "grad.enumeration()"
            )
        if base(law).event_shape:
            return f"{kind(law)} is a law of vectors, without a cdf: take grad.reparameterised()"
        try:
            jax.eval_shape(lambda law: law.cdf(jnp.zeros(law.batch_shape)), base(law))
        except NotImplementedError:
            return f"{kind(law)} has no cdf: take grad.score_function()"
        return None

    def draw(self, key: Key, law: Any, branch: Any) -> Site:
        """Return a draw whose derivative keeps the distribution function at it constant."""
        del branch
        each = base(law)
        value = jax.lax.stop_gradient(law.sample(key))
        level = each.cdf(value)
        density = jax.lax.stop_gradient(jnp.exp(each.log_prob(value)))
        return plain(value - (level - jax.lax.stop_gradient(level)) / density)


def implicit() -> Implicit:
    r"""Differentiate through a draw by its distribution function.

    .. math:: F_\theta(x) = u \quad\Rightarrow\quad
              \nabla_\theta x = -\frac{\nabla_\theta F_\theta(x)}{q_\theta(x)}

    Returns:
      The strategy, for laws of numbers with a differentiable ``cdf``: mixtures too, whose component
      is drawn and not differentiated otherwise.

    Reference:
      M. Figurnov, S. Mohamed and A. Mnih, "Implicit reparameterization gradients" (2018), eq. 8.
    """
    return Implicit()
