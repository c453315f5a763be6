"""Values as functions of noise that the parameters have no part in."""

from dataclasses import dataclass
from typing import Any

from jaxinf.core import Key
from jaxinf.grad.strategy import Once, Site, kind, plain


@dataclass(frozen=True)
class Reparameterised(Once):
    """See :func:`reparameterised`."""

    def refusal(self, law: Any) -> str | None:
        """Return why the law's draws are no smooth functions of its parameters."""
        if law.has_rsample:
            return None
        if law.is_discrete:
            return (
                f"draws of a {kind(law)} are no smooth function of its parameters: take "
                "grad.score_function(), grad.enumeration(), grad.measure_valued() or "
                "grad.straight_through()"
            )
        return (
            f"{kind(law)} has no reparameterised draw: take grad.implicit() where it has a cdf, "
            "or grad.score_function()"
        )

    def draw(self, key: Key, law: Any, branch: Any) -> Site:
        """Return a draw that is differentiated through."""
        del branch
        return plain(law.rsample(key))


def reparameterised() -> Reparameterised:
    r"""Differentiate through the draw.

    .. math:: x = g(\epsilon, \theta), \qquad
              \nabla_\theta E[f(x)] = E[\nabla_x f(x)\, \nabla_\theta g(\epsilon, \theta)]

    Returns:
      The strategy, for laws whose ``has_rsample`` is true. Gammas, betas, Dirichlets and Student's
      t are differentiated implicitly by JAX.

    Reference:
      D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), eq. 4.
    """
    return Reparameterised()
