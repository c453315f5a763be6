"""A family, or the steps of a sampler, fitted to a target."""

from dataclasses import dataclass
from typing import Any

import optax
from jaxtyping import Array, PyTree

from jaxinf.core import Key
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

    def __call__(self, family: Any, key: Key, target: Any) -> tuple[Array, Info]:
        return self.objective(key, _measures(target, family))


def approximate(
    key: Key,
    target: Any,
    family: Any,
    *,
    objective: Any = None,
    steps: int = 2000,
    optimizer: optax.GradientTransformation | None = None,
    opt_state: PyTree = None,
    progress: bool = False,
) -> Fit:
    r"""Fit a family, or the steps of a sampler, to a target.

    Args:
      key: a typed key.
      target: with ``log_prob(z)``.
      family: where to start, with ``sample_and_log_prob(key)`` and ``log_prob(z)``, or
        :class:`Kernels` of :func:`path_measures`; all its numbers are learnt.
      objective: ``elbo(draws=16)`` by default.
      steps: how many.
      optimizer: optax's; Adam at 1e-2 by default.
      opt_state: of an earlier fit, to go on.
      progress: whether a bar counts the steps.

    Returns:
      :class:`Fit`; ``params`` is what was fitted.

    Raises:
      TypeError: where the target has no density.
      ValueError: where family and target have different dimensions.

    Example:
      ``vi.approximate(key, posterior, vi.full_rank(posterior.dim)).params.sample(key)``
    """
    _measures(target, family)
    objective = elbo(16) if objective is None else objective
    return fit(
        key, _Loss(objective), family, target, steps=steps, optimizer=optimizer,
        opt_state=opt_state, progress=progress,
    )  # fmt: skip
