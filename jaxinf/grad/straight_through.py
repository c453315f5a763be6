"""Discrete draws that are differentiated as if they were their probabilities: biased."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array

from jaxinf.core import Key
from jaxinf.grad.strategy import Once, Site, kind, parameters, plain

LAWS = ("BernoulliProbs", "BernoulliLogits", "OneHotCategorical")


@dataclass(frozen=True)
class StraightThrough(Once):
    """See :func:`straight_through`."""

    def refusal(self, law: Any) -> str | None:
        """Return why the law's draws cannot stand for probabilities."""
        if kind(law) in LAWS:
            return None
        if kind(law).startswith("Categorical"):
            return f"{kind(law)} draws numbers of classes: take grad.one_hot_categorical(logits)"
        return f"{kind(law)} is no Bernoulli and no one-hot categorical: take score_function()"

    def draw(self, key: Key, law: Any, branch: Any) -> Site:
        """Return a draw with its probabilities' derivative."""
        del branch
        value, logits = hard(key, law)
        return plain(through(value, probabilities(law, logits)))


def straight_through() -> StraightThrough:
    r"""Differentiate a discrete draw as its probabilities (first order, biased).

    .. math:: \nabla_\theta E[f(D)] \approx E[\nabla f(D)\, \nabla_\theta \pi(\theta)],
              \qquad D \sim \pi(\theta)

    Exact where f is linear.

    Returns:
      The strategy, for Bernoullis and one-hot categoricals. What follows must be a function of
      real numbers.

    Reference:
      Y. Bengio, N. Leonard and A. Courville, "Estimating or propagating gradients through
      stochastic neurons for conditional computation" (2013).
    """
    return StraightThrough()


def hard(key: Key, law: Any) -> tuple[Array, Array]:
    """Return a draw as real numbers, and its law's logits."""
    held = parameters(law)
    logits = held["logits"] if "logits" in held else jax.scipy.special.logit(held["probs"])
    return jax.lax.stop_gradient(law.sample(key)).astype(logits.dtype), logits


def probabilities(law: Any, logits: Array) -> Array:
    """Return the probabilities of logits."""
    if kind(law).startswith("Bernoulli"):
        return jax.nn.sigmoid(logits)
    return jax.nn.softmax(logits, axis=-1)


def through(value: Array, soft: Array) -> Array:
    """Return a value with the derivative of another."""
    return value + (soft - jax.lax.stop_gradient(soft))
