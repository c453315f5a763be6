"""How a sample site is differentiated: what a strategy makes of its law."""

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key


class Site(NamedTuple):
    """What is drawn at a site in one branch of a program."""

    value: Array
    """Differentiated as far as the strategy differentiates through it."""
    score: Float[Array, ""] | None
    r"""A number s whose gradient, times what the draw costs, is part of the estimate: the estimate
    of :math:`\nabla E[f]` is :math:`\nabla f + f \nabla s`; None for none."""
    weight: Float[Array, ""]
    """Of the branch: what the draw costs is multiplied by it, and it is differentiated."""


@runtime_checkable
class Strategy(Protocol):
    """How a site is differentiated. Hashable, so that programs compile once for it."""

    def refusal(self, law: Any) -> str | None:
        """Return why sites of a law cannot have the strategy and which they can; else None."""
        ...

    def branches(self, law: Any) -> int:
        """Return how many branches a site of a law has: 1 where it is drawn once."""
        ...

    @property
    def exhaustive(self) -> bool:
        """Whether the branches are all values there are; else the first is a draw."""
        ...

    def draw(self, key: Key, law: Any, branch: Any) -> Site:
        """Return what is drawn in a branch; the same key gives all of a site's branches."""
        ...


class Once:
    """The part of strategies that draw once."""

    exhaustive = False

    def branches(self, law: Any) -> int:
        """Return 1."""
        del law
        return 1


def plain(value: Array) -> Site:
    """Return a draw without score and with weight one."""
    return Site(value, None, jnp.ones((), jnp.result_type(float)))


def base(law: Any) -> Any:
    """Return the law whose independent copies a site has."""
    from numpyro.distributions import ExpandedDistribution, Independent

    while isinstance(law, ExpandedDistribution | Independent):
        law = law.base_dist
    return law


def kind(law: Any) -> str:
    """Return the name of the law of which a site has copies."""
    return type(base(law)).__name__


def parameters(law: Any) -> dict[str, Array]:
    """Return the parameters of a law of numbers by name, each as large as the site."""
    shape, inner = law.batch_shape + law.event_shape, base(law)
    names = [name for name in inner.arg_constraints if name in vars(inner)]
    return {name: jnp.broadcast_to(vars(inner)[name], shape) for name in names}


def size(law: Any) -> int:
    """Return how many numbers a site has."""
    return math.prod(law.batch_shape + law.event_shape)
