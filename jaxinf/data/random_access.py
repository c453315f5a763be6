"""Batches of a large data set that is read from disk, through grain."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree

from jaxinf.data.shuffle import positions

Batch = Callable[[int, int, Int[np.ndarray, " b"]], PyTree]
"""(seed, step, index) -> rows, as ``run.Experiment.batch``."""


def from_grain(dataset: Callable[[int], Any], *, batch: int, threads: int = 16) -> Batch:
    """Return an experiment's ``batch`` function that reads a random-access grain data set.

        def dataset(seed):
            return grain.MapDataset.source(paths).seed(seed).shuffle().map(read)

        Experiment(batch=data.from_grain(dataset, batch=128), batch_size=128, ...)

    Row ``index`` of a step is the data set's element ``step * batch + index``, beyond its length
    that of a later epoch, which grain's ``shuffle`` puts in an order of its own. So any division
    of ``index`` over hosts gives the same global batch, and a run that is resumed at a step sees
    what it would have seen, with nothing to be stored. The reading and decoding of a batch's
    elements go on in parallel threads.

    Args:
      dataset: ``seed -> grain.MapDataset``, called once a seed; its elements are numbers, arrays or
        pytrees of them, of equal shapes. Reading must release Python's lock (files, NumPy and
        Pillow do) for threads to help.
      batch: size of the global batch.
      threads: how many elements are read at a time.

    Returns:
      ``(seed, step, index) -> rows``, NumPy arrays with a leading axis of ``len(index)``.

    Raises:
      ImportError: without grain.
      ValueError: for sizes below 1; when called, for a negative seed or step, positions outside the
        batch, none at all, and an element that a filter of the data set took out.
      TypeError: when called, for a data set without random access.
    """
    kind = _map_dataset()
    if batch < 1 or threads < 1:
        raise ValueError(f"batch and threads must be at least 1, got {batch} and {threads}.")
    pool = ThreadPoolExecutor(threads, "from_grain")

    @lru_cache
    def opened(seed: int) -> Any:
        found = dataset(seed)
        if not isinstance(found, kind):
            raise TypeError(
                f"dataset(seed) must return a grain.MapDataset, got {type(found).__name__}. Leave "
                "out to_iter_dataset and batch: batches are made here, at any position."
            )
        return found

    def rows(seed: int, step: int, index: Int[np.ndarray, " b"]) -> PyTree:
        places = positions(seed, step, index, batch=batch).tolist()
        if not places:
            raise ValueError("index must hold at least one position, got none.")
        found = list(pool.map(opened(seed).__getitem__, places))
        if any(element is None for element in found):
            raise ValueError(
                f"element {places[[e is None for e in found].index(True)]} was filtered out, and a "
                "batch needs a row at every position. Filter the source before MapDataset."
            )
        return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

    return rows


def _map_dataset() -> type:
    """Return grain's class of random-access data sets."""
    try:
        import grain
    except ImportError as error:
        raise ImportError(
            'data.from_grain reads through grain; install it by pip install "jaxinf[data]"'
        ) from error
    return grain.MapDataset
