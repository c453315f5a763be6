"""All values of a site, weighted by their probabilities."""

import itertools
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinf.core import Key, concretely
from jaxinf.grad.strategy import Site, base, kind, plain, size

MOST = 4096
"""Branches of one site."""


@dataclass(frozen=True)
class Enumeration:
    """See :func:`enumeration`."""

    exhaustive = True

    def refusal(self, law: Any) -> str | None:
        """Return why the law's values cannot be gone through."""
        if not law.has_enumerate_support:
            return f"{kind(law)} has no finite support: take grad.score_function()"
        if self.branches(law) > MOST:
            return (
                f"the site has {self.branches(law):,} values together, of which {MOST:,} at most "
                "are gone through: take grad.score_function()"
            )
        return None

    def branches(self, law: Any) -> int:
        """Return how many values there are."""
        each, places = len(_support(law)), _places(law)
        return each**places

    def draw(self, key: Key, law: Any, branch: Any) -> Site:
        """Return a value, with its probability for weight."""
        del key
        with concretely():
            support = np.asarray(_support(law))
            joint = np.stack(list(itertools.product(support, repeat=_places(law))))
        shape = law.batch_shape + law.event_shape
        value = jnp.asarray(joint.reshape(len(joint), *shape))[branch]
        return plain(value)._replace(weight=jnp.exp(jnp.sum(law.log_prob(value))))


def _places(law: Any) -> int:
    """Return how many independent values a site has."""
    return max(1, size(law) // max(1, _support(law)[0].size))


def _support(law: Any) -> Any:
    """Return the values of one of them."""
    law = base(law)
    values = law.enumerate_support(expand=False)
    return values.reshape(values.shape[0], *law.event_shape)


def enumeration() -> Enumeration:
    r"""Sum over all values: no variance at the site.

    .. math:: E[f(x)] = \sum_x q_\theta(x) f(x)

    What follows the site is run for each of its values, with the same noise. Sites of several
    independent values are gone through together, sites after one another too: numbers of values
    multiply.

    Returns:
      The strategy, for laws with finite support.
    """
    return Enumeration()
