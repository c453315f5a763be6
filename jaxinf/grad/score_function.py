"""The gradient of the log density, times what the draw costs."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxinf.core import Key
from jaxinf.grad.strategy import Once, Site, plain


@dataclass(frozen=True)
class ScoreFunction(Once):
    """See :func:`score_function`."""

    def refusal(self, law: Any) -> str | None:
        """Return None: every law with a density has a score."""
        del law
        return None

    def draw(self, key: Key, law: Any, branch: Any) -> Site:
        """Return a draw that is a constant, and its log density."""
        del branch
        value = jax.lax.stop_gradient(law.sample(key))
        return plain(value)._replace(score=jnp.sum(law.log_prob(value)))


def score_function() -> ScoreFunction:
    r"""Differentiate the density and not the draw (REINFORCE).

    .. math:: \nabla_\theta E[f(x)] = E[(f(x) - b)\, \nabla_\theta \log q_\theta(x)]

    The baseline b is the objective's: with several draws each has the others' as its own
    (leave-one-out), which for importance-weighted bounds is VIMCO's.

    Returns:
      The strategy, for every law.

    Reference:
      R. J. Williams, "Simple statistical gradient-following algorithms for connectionist
      reinforcement learning" (1992); A. Mnih and D. J. Rezende, "Variational inference for Monte
      Carlo objectives" (2016), eq. 10.
    """
    return ScoreFunction()
