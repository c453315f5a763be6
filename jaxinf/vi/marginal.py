"""Guides with choices of their own, which are summed over."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, record, static
from jaxinf.grad import Annotated, Draw
from jaxinf.vi.iwae import log_mean


@record
class Marginal:
    """See :func:`marginal`."""

    guide: Leaf
    inversion: Leaf
    keep: tuple[str, ...] = static()
    particles: int = static()

    def draw(self, key: Key) -> Draw:
        """Draw the kept sites, with an estimate of their log density."""
        first, others = jax.random.split(key)
        drawn = self.guide.draw(first)
        if drawn.weight.shape[0] > 1:
            raise ValueError(
                "a guide whose own choices are summed over cannot have sites with several branches "
                "(grad.enumeration, grad.measure_valued): give those grad.score_function()."
            )
        values = jax.tree.map(lambda a: a[0], drawn.values)
        kept = {name: values[name] for name in self.keep}
        own = {name: value for name, value in values.items() if name not in self.keep}
        if self.inversion is None:  # by the guide itself: what is left is the kept sites' part
            log_w = self.guide.part(values, self.keep)[None]
        else:
            log_w = (drawn.log_prob[0] - self._inverted(kept).log_prob(own))[None]
        if self.particles > 1:
            keys = jax.random.split(others, self.particles - 1)
            log_w = jnp.concatenate([log_w, jax.vmap(lambda k: self._weight(k, kept))(keys)])
        return Draw(
            jax.tree.map(lambda a: a[None], kept), log_mean(log_w)[None], drawn.weight, drawn.score
        )

    def log_prob(self, values: PyTree) -> Float[Array, ""]:
        """Raise: the density is an estimate, which is drawn."""
        raise ValueError(
            "the density of a guide with choices of its own is estimated as it draws: take an "
            "objective that asks for no other, vi.elbo() or vi.iwae() with their total gradient."
        )

    def _weight(self, key: Key, kept: PyTree) -> Float[Array, ""]:
        """Return the log weight of choices of the guide's own that might have led here."""
        if self.inversion is None:
            return self.guide.complete(key, kept)[1]
        own = jax.tree.map(lambda a: a[0], self._inverted(kept).draw(key))
        return self.guide.log_prob({**own.values, **kept}) - own.log_prob

    def _inverted(self, kept: PyTree) -> Annotated:
        """Return the law of the guide's own choices, given what they led to."""
        args = (kept, *self.inversion.args)
        return dataclasses.replace(self.inversion, args=args)


def marginal(
    guide: Annotated, keep: tuple[str, ...], *, inversion: Annotated | None = None,
    particles: int = 1,
) -> Marginal:  # fmt: skip
    r"""A guide whose own choices u are summed over by importance sampling.

    .. math:: \log \hat q(z) = \log \frac1K \sum_{k=1}^K \frac{q(z, u_k)}{r(u_k | z)}, \qquad
              (z, u_1) \sim q, \quad u_2, \dots, u_K \sim r(\cdot | z)

    In expectation at least log q(z), so that bounds stay bounds: the evidence lower bound with it
    is hierarchical variational inference for K = 1, its importance-weighted form for more, and with
    :func:`iwae` doubly importance-weighted.

    Args:
      guide: :func:`jaxinf.grad.annotate`'s.
      keep: names of the sites that are the model's, z; all others are the guide's own, u.
      inversion: r, an annotated program whose first argument is z by name (leave that argument out
        of :func:`annotate`'s); without one, u is drawn by the guide as if z had not been.
      particles: K.

    Returns:
      The law, to be a pair's q.

    Raises:
      ValueError: for fewer than one particle, and no site to keep.

    Reference:
      A. Sobolev and D. Vetrov, "Importance weighted hierarchical variational inference" (2019),
      eq. 6; M. K. Lew, M. Ghavamizadeh, M. C. Rinard and V. K. Mansinghka, "Probabilistic
      programming with stochastic probabilities" (2023).
    """
    if particles < 1:
        raise ValueError(f"particles must be at least 1, got {particles}.")
    if not keep:
        raise ValueError("keep must name the model's sites, and names none.")
    return Marginal(guide, inversion, tuple(keep), particles)
