"""Paths that are resampled by their weights on the way."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxinf import smc
from jaxinf.core import Key, Leaf, Scalar, record


@record
class Weighted:
    """A pair of path measures as a chain whose steps have weights, for :func:`jaxinf.smc.run`."""

    measures: Leaf

    def init(self, key: Key) -> PyTree:
        """Draw a first state."""
        return self.measures.kernels.start(self.measures.target).sample(key)

    def step(self, key: Key, particle: PyTree, inputs: Array) -> tuple[PyTree, Array]:
        """Take the step that leads to a state's place, and return it with the log weight."""
        kernels, target = self.measures.kernels, self.measures.target
        _, ahead = kernels.around(target, inputs - 1, particle)
        new = ahead.sample(key)
        behind, _ = kernels.around(target, inputs, new)
        rise = kernels.log_between(target, inputs, new)
        rise = rise - kernels.log_between(target, inputs - 1, particle)
        return new, rise + behind.log_prob(particle) - ahead.log_prob(new)


def resampled(
    key: Key,
    measures: Any,
    particles: int = 1000,
    *,
    resample: smc.Scheme = smc.systematic,
    threshold: Scalar = 0.5,
    history: bool = False,
) -> smc.Run:
    r"""Run path measures as a sequential Monte Carlo sampler.

    .. math:: G_k = \frac{\pi_{k+1}(x_{k+1})\, B_k(x_k \mid x_{k+1})}
                         {\pi_k(x_k)\, F_k(x_{k+1} \mid x_k)}

    The product over k is a path's weight p / q; where weights have become too unequal paths are
    drawn anew by them. The estimate of Z stays unbiased. With a control that was learnt by
    :func:`approximate` weights are even and little is drawn anew.

    Args:
      key: a typed key.
      measures: :func:`path_measures` of kernels that know densities on the way: all of
        :func:`annealing`.
      particles: how many, two or more.
      resample: the scheme.
      threshold: the share of effective particles below which they are drawn anew; 0 never.
      history: whether all steps' states are kept.

    Returns:
      :class:`jaxinf.smc.Run`: the last states with weights, log Z and its standard error.

    Raises:
      TypeError: for kernels without densities on the way.
      ValueError: for fewer than two particles and a threshold outside [0, 1].

    Reference:
      P. Del Moral, A. Doucet and A. Jasra, "Sequential Monte Carlo samplers" (2006), eq. 12;
      J. Chen et al., "Sequential controlled Langevin diffusions" (2025), section 3.
    """
    counts = jnp.arange(1, measures.kernels.steps + 1)
    return smc.run(
        key, Weighted(measures), counts, particles=particles, resample=resample,
        threshold=threshold, history=history,
    )  # fmt: skip
