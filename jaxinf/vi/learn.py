"""Kernels fitted to a target."""

from dataclasses import dataclass
from typing import Any

import optax
from jaxtyping import Array, PyTree

from jaxinf.core import Key
from jaxinf.vi.elbo import elbo
from jaxinf.vi.fit import Fit, fit
from jaxinf.vi.objective import Info
from jaxinf.vi.paths import PathMeasures, path_measures


@dataclass(frozen=True)
class _Loss:
    """An objective of kernels that are learnt and a target that is given."""

    objective: Any

    def __call__(self, kernels: Any, key: Key, target: Any) -> tuple[Array, Info]:
        return self.objective(key, PathMeasures(target, kernels))


def learn(
    key: Key,
    measures: PathMeasures,
    *,
    objective: Any = None,
    steps: int = 2000,
    optimizer: optax.GradientTransformation | None = None,
    opt_state: PyTree = None,
    progress: bool = False,
) -> Fit:
    """Make the divergence of path measures small; their kernels' numbers are learnt.

    Args:
      key: a typed key.
      measures: :func:`path_measures`.
      objective: ``elbo(draws=64)`` by default.
      steps: of gradient descent.
      optimizer: optax's; Adam at 1e-2 by default.
      opt_state: of an earlier fit, to go on.
      progress: whether a bar counts the steps.

    Returns:
      :class:`Fit`; ``params`` are the kernels.
    """
    path_measures(measures.target, measures.kernels)
    loss = _Loss(elbo(64) if objective is None else objective)
    return fit(
        key, loss, measures.kernels, measures.target, steps=steps, optimizer=optimizer,
        opt_state=opt_state, progress=progress,
    )  # fmt: skip
