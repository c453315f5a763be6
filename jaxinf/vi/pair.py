"""Two measures of one draw: what is drawn from, and what it is held against."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, record
from jaxinf.vi.checks import check_density


class Weighed(NamedTuple):
    """A draw under both measures; leaves have its branches as leading axis."""

    values: PyTree
    log_p: Float[Array, " branches"]
    """Of the measure that it is held against, unnormalised, in nats."""
    log_q: Float[Array, " branches"]
    """Of the one that it is drawn from, normalised."""
    weight: Float[Array, " branches"]
    """See :class:`jaxinf.grad.Draw`."""
    score: Float[Array, " branches"] | None


@runtime_checkable
class Measures(Protocol):
    """A pair of measures on the same values: latent variables, or paths."""

    def draw(self, key: Key) -> Weighed:
        """Draw from q, differentiated as its strategies say."""
        ...

    def evaluate(self, values: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return log p and log q of values."""
        ...


@record
class Pair:
    """An unnormalised law p and a law q of the same values; see :func:`pair`."""

    p: Leaf
    q: Leaf

    def draw(self, key: Key) -> Weighed:
        """Draw from q, and weigh by p."""
        if hasattr(self.q, "draw"):
            found = self.q.draw(key)
            values, log_q, weight, score = found
        else:
            value, log_prob = self.q.sample_and_log_prob(key)
            values, log_q = jax.tree.map(lambda a: a[None], (value, log_prob))
            weight, score = jnp.ones_like(log_q), None
        log_p = jax.vmap(self.p.log_prob)(values)
        return Weighed(values, log_p, log_q, weight, score)

    def evaluate(self, values: PyTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return log p and log q of values."""
        return self.p.log_prob(values), self.q.log_prob(values)


def pair(p: Any, q: Any) -> Pair:
    r"""A law to be approximated and one that approximates it.

    Every objective of this room is a divergence of the two,
    :math:`\log w(x) = \log p(x) - \log q(x)`.

    Args:
      p: with ``log_prob(values)``, unnormalised: a target, or :func:`jaxinf.grad.annotate`'s of a
        NumPyro program with its data.
      q: with ``draw(key)`` (an annotated program), or ``sample_and_log_prob(key)`` and
        ``log_prob(values)`` (a family).

    Returns:
      The pair.

    Raises:
      TypeError: where p has no density or q cannot draw.
    """
    check_density(p)
    if not (hasattr(q, "draw") or hasattr(q, "sample_and_log_prob")):
        raise TypeError(
            f"{type(q).__name__} cannot draw with a density: pass a family such as "
            "vi.mean_field(dim), or grad.annotate(guide, data)."
        )
    dims = getattr(p, "dim", None), getattr(q, "dim", None)
    if None not in dims and dims[0] != dims[1]:
        raise ValueError(f"p is a density of {dims[0]} numbers and q draws {dims[1]}.")
    return Pair(p, q)


def frozen(tree: Any) -> Any:
    """Return a record whose numbers are not differentiated."""
    return jax.tree.map(jax.lax.stop_gradient, tree)


def draws_of(key: Key, measures: Any, count: int) -> Weighed:
    """Return draws, leading axes [draws, branches]."""
    return jax.vmap(measures.draw)(jax.random.split(key, count))


def held_draws(
    key: Key, measures: Any, count: int
) -> tuple[Weighed, Float[Array, " draws"], Float[Array, " draws"]]:
    """Return draws that are held, [draws], with their log p and log q, which are differentiated."""
    draw = single(jax.lax.stop_gradient(draws_of(key, measures, count)))
    log_p, log_q = jax.vmap(measures.evaluate)(draw.values)
    return draw, log_p, log_q


def single(draw: Weighed) -> Weighed:
    """Return draws of one branch without its axis, [draws]; raise where there are several."""
    if draw.log_q.shape[1] > 1:
        raise ValueError(
            "this objective is no mean over draws, and cannot have sites with several branches "
            "(grad.enumeration, grad.measure_valued): give those grad.score_function()."
        )
    return jax.tree.map(lambda a: a[:, 0], draw)
