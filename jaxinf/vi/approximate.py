"""A family, or the steps of a sampler, fitted to a target."""

from dataclasses import dataclass
from typing import Any

import optax
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, record
from jaxinf.vi.elbo import elbo
from jaxinf.vi.fit import Fit, fit
from jaxinf.vi.objective import Info
from jaxinf.vi.pair import pair
from jaxinf.vi.paths import Kernels, path_measures


def _measures(target: Any, family: Any) -> Any:
    """Return a target and what is fitted to it as a pair."""
    return path_measures(target, family) if isinstance(family, Kernels) else pair(target, family)


@dataclass(frozen=True)
class _Loss:
    """An objective of what is learnt and a target that is given."""

    objective: Any

    def __call__(self, family: Any, key: Key, target: Any, power: Any = None) -> tuple[Array, Info]:
        target = target if power is None else Powered(target, power)
        return self.objective(key, _measures(target, family))


@record
class Powered:
    """A target whose log density is multiplied by a number."""

    target: Leaf
    power: Leaf

    @property
    def dim(self) -> int | None:
        """How many numbers a position has, where the target knows."""
        return getattr(self.target, "dim", None)

    def log_prob(self, z: Any) -> Float[Array, ""]:
        """Return the product."""
        return self.power * self.target.log_prob(z)


def approximate(
    key: Key,
    target: Any,
    family: Any,
    *,
    objective: Any = None,
    powers: Float[Array, " steps"] | None = None,
    steps: int = 2000,
    optimizer: optax.GradientTransformation | None = None,
    opt_state: PyTree = None,
    progress: bool = False,
) -> Fit:
    r"""Fit a family, or the steps of a sampler, to a target.

    With powers :math:`\beta_t` the steps go down the annealed free energy,

    .. math:: F_t = E_q\bigl[\log q(z) - \beta_t \log \pi(z)\bigr],

    so that all of a target's modes are found before its depth counts.

    Args:
      key: a typed key.
      target: with ``log_prob(z)``.
      family: where to start, with ``sample_and_log_prob(key)`` and ``log_prob(z)``, or
        :class:`Kernels` of :func:`path_measures`; all its numbers are learnt.
      objective: ``elbo(draws=16)`` by default.
      powers: of the target's density in each step; 1 by default. The paper's are
        ``jnp.minimum(1, 0.01 + jnp.arange(steps) / 10_000)``.
      steps: how many.
      optimizer: optax's; Adam at 1e-2 by default.
      opt_state: of an earlier fit, to go on.
      progress: whether a bar counts the steps.

    Returns:
      :class:`Fit`; ``params`` is what was fitted.

    Raises:
      TypeError: where the target has no density.
      ValueError: where family and target have different dimensions, and for powers of another
        number than steps.

    Reference:
      D. J. Rezende and S. Mohamed, "Variational Inference with Normalizing Flows" (2015), eq. 20.

    Example:
      ``vi.approximate(key, posterior, vi.full_rank(posterior.dim)).params.sample(key)``
    """
    _measures(target, family)
    objective = elbo(16) if objective is None else objective
    return fit(
        key, _Loss(objective), family, target, inputs=powers, steps=steps, optimizer=optimizer,
        opt_state=opt_state, progress=progress,
    )  # fmt: skip
