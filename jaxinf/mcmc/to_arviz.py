"""Chains in the form that ArviZ reads."""

from typing import Any

import jax
import numpy as np

from jaxinf.mcmc.driver import Run
from jaxinf.target import Target


def to_arviz(run: Run, target: Target) -> Any:
    """Return a run as ArviZ's tree, with the values that positions stand for by their names.

    ``arviz.summary(to_arviz(run, target))`` and all of its plots read it.

    Args:
      run: of :func:`sample`, of one target (of a vmap over many take one by ``jax.tree.map``).
      target: the one that it drew from.

    Returns:
      An ``xarray.DataTree``. Group ``posterior`` holds ``target.constrain`` of the draws: the
      sites of a program; the leaves of a function's pytree by their keys joined with points, or
      ``x`` where it is one array. Group ``sample_stats`` holds ``acceptance_rate``, ``diverging``,
      ``energy``, ``n_steps`` (gradients), by chain and draw.

    Raises:
      ValueError: when the draws are not [chains, draws, dim] of the target's dimension.
    """
    import arviz

    if run.draws.ndim != 3 or run.draws.shape[-1] != target.dim:
        raise ValueError(
            f"the run's draws must have shape (chains, draws, {target.dim}), got "
            f"{run.draws.shape}. Pass the target that was drawn from, and of several runs at once "
            "one: jax.tree.map(lambda leaf: leaf[0], runs)."
        )
    values = jax.vmap(jax.vmap(target.constrain))(run.draws)
    leaves = jax.tree_util.tree_leaves_with_path(values)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "x" for path, _ in leaves]
    found = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
    info = jax.tree.map(np.asarray, run.info)
    stats = {
        "acceptance_rate": info.acceptance,
        "diverging": info.diverged,
        "energy": info.energy,
        "n_steps": info.gradients,
    }
    return arviz.from_dict({"posterior": found, "sample_stats": stats})
