"""Batches of a finite data set as a pure function of seed, step and position."""

from functools import lru_cache
from operator import index as integer

import numpy as np
from jaxtyping import Int, Int64


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    """The order of one epoch, the same on every host; the last few are kept."""
    order = np.random.default_rng([seed, epoch]).permutation(examples)
    order.setflags(write=False)
    return order


def rows(
    seed: int, step: int, index: Int[np.ndarray, " b"], *, batch: int, examples: int
) -> Int64[np.ndarray, " b"]:
    """Return which examples stand at given positions of a step's global batch.

    Position ``step * batch + index`` runs through the epochs without a gap: epoch ``position //
    examples`` visits each example once, in an order of its own, and a batch may straddle two
    epochs. Any division of ``index`` over hosts gives the same global batch, and a run that is
    resumed at a step sees what it would have seen.

    Args:
      seed: a whole number, not negative, that fixes all orders.
      step: the training step, from 0.
      index: positions within the global batch, each in ``[0, batch)``.
      batch: size of the global batch.
      examples: size of the data set.

    Returns:
      Row numbers in ``[0, examples)``, on the host.

    Raises:
      ValueError: for a negative seed or step, a size below 1, or a position outside the batch.

    Example:
      ``train.x[rows(0, step, np.arange(128), batch=128, examples=len(train.x))]``
    """
    seed, step, batch, examples = map(integer, (seed, step, batch, examples))
    if batch < 1 or examples < 1:
        raise ValueError(f"batch and examples must be at least 1, got {batch} and {examples}.")
    epoch, place = np.divmod(positions(seed, step, index, batch=batch), examples)
    chosen = np.empty_like(epoch)
    for number in np.unique(epoch):
        here = epoch == number
        chosen[here] = _permutation(seed, int(number), examples)[place[here]]
    return chosen


def positions(
    seed: int, step: int, index: Int[np.ndarray, " b"], *, batch: int
) -> Int64[np.ndarray, " b"]:
    """Return ``step * batch + index``, once seed, step and index are known to be right."""
    if seed < 0 or step < 0:
        raise ValueError(f"seed and step must not be negative, got seed {seed} and step {step}.")
    index = np.asarray(index, np.int64)
    if index.size and not (index.min() >= 0 and index.max() < batch):
        raise ValueError(
            f"index must hold positions in [0, {batch}), got {index.min()} to {index.max()}. "
            "Pass positions within the global batch; step counts the batches."
        )
    return step * batch + index
