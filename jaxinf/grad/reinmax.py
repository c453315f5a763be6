"""Discrete draws that are differentiated to second order: biased less."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Key
from jaxinf.grad.straight_through import StraightThrough, hard, probabilities, through
from jaxinf.grad.strategy import Site, kind, plain


@dataclass(frozen=True)
class ReinMax(StraightThrough):
    """See :func:`reinmax`."""

    def draw(self, key: Key, law: Any, branch: Any) -> Site:
        """Return a draw with a derivative of second order."""
        del branch
        value, logits = hard(key, law)
        first = jax.lax.stop_gradient(probabilities(law, logits))
        single = kind(law).startswith("Bernoulli")
        middle = _moved((first + value) / 2, logits, single)
        return plain(through(value, 2 * middle - _moved(first, logits, single) / 2))


def _moved(probs: Array, logits: Array, single: bool) -> Array:
    """Return what logits are multiplied to by the softmax's Jacobian at probabilities."""
    if single:
        return probs * (1 - probs) * logits
    return probs * (logits - jnp.sum(probs * logits, axis=-1, keepdims=True))


def reinmax() -> ReinMax:
    r"""Differentiate a discrete draw by Heun's rule between its probabilities and itself (biased).

    .. math:: \nabla_\theta E[f(D)] \approx E\Bigl[\nabla f(D)\, \bigl(2 J(\tfrac{\pi + D}{2})
              - \tfrac12 J(\pi)\bigr)\Bigr], \qquad J(\pi) = \mathrm{diag}(\pi) - \pi \pi^T

    Exact where f is quadratic.

    Returns:
      The strategy, for Bernoullis and one-hot categoricals. What follows must be a function of
      real numbers.

    Reference:
      L. Liu, C. Dong, X. Liu, B. Yu and J. Gao, "Bridging discrete and backpropagation:
      straight-through and beyond" (2023), eq. 6, algorithm 2.
    """
    return ReinMax()
