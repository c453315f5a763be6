"""Particles whose every step is a particle method of its own (nested sequential Monte Carlo)."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, PyTree

from jaxinf.core import Key, Leaf, record, static
from jaxinf.smc.driver import run
from jaxinf.smc.resampling import Scheme, systematic


@record
class Nested:
    """A Feynman-Kac model whose steps are runs of others; see :func:`nested`."""

    params: Leaf
    start: Callable[[Any, Key], PyTree] = static()
    inside: Callable[[Any, PyTree, PyTree], tuple[Any, PyTree]] = static()
    particles: int = static()
    resample: Scheme = static()

    def init(self, key: Key) -> PyTree:
        """Draw a particle."""
        return self.start(self.params, key)

    def step(self, key: Key, particle: PyTree, inputs: PyTree) -> tuple[PyTree, Array]:
        """Return one of the inner run's particles, and the inner evidence as its weight."""
        key_run, key_draw = jax.random.split(key)
        model, rows = self.inside(self.params, particle, inputs)
        found = run(key_run, model, rows, particles=self.particles, resample=self.resample)
        chosen = jax.random.categorical(key_draw, found.population.normalise())
        return jax.tree.map(lambda a: a[chosen], found.population.particles), found.log_evidence


def nested(
    start: Callable[[Any, Key], PyTree],
    inside: Callable[[Any, PyTree, PyTree], tuple[Any, PyTree]],
    params: PyTree = (),
    *,
    particles: int = 20,
    resample: Scheme = systematic,
) -> Nested:
    r"""A model for :func:`run` whose particles move and are weighed by an inner run each.

    For states of many parts: the inner run goes through the parts of one time, so that each is
    weighed by its own observation before the next is drawn. Its evidence :math:`\hat Z(x_{t-1})`
    and one of its particles are a properly weighted pair,

    .. math:: E\bigl[\hat Z(x_{t-1})\, f(x_t)\bigr] = \int k(dx \mid x_{t-1})\, g(y_t \mid x)\, f(x)

    so the outer evidence is unbiased whatever the inner number of particles.

    Args:
      start: of (params, key): a first particle.
      inside: of (params, particle, inputs): the inner model, whose particles hold what the outer
        ones do when it ends, and its inputs, a leading axis of parts. Give functions that stay,
        defined at the top of a file: new ones compile anew.
      params: what both take; numbers in it recompile nothing.
      particles: of each inner run, two or more.
      resample: the inner scheme; not ``metropolis``, whose evidence is biased.

    Returns:
      A :class:`Model`.

    Raises:
      ValueError: for fewer than two particles.

    Reference:
      C. Naesseth, F. Lindsten and T. Schon, "Nested Sequential Monte Carlo Methods", ICML 2015.
    """
    if particles < 2:
        raise ValueError(f"particles of the inner runs must be at least 2, got {particles}.")
    return Nested(params, start, inside, particles, resample)
