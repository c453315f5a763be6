"""Scikit-learn's handwritten digits: 1797 grey images of 8x8 pixels with 17 levels."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

TEST = 360
"""How many of the 1797 digits are held out."""

LEVELS = 17
"""A pixel takes the values 0 to 16."""


class Labelled(NamedTuple):
    """Images with their classes, as NumPy arrays.

    Attributes:
      x: levels from 0 to 16, ``[n, 8, 8, 1]``.
      label: classes from 0 to 9, ``[n]``.
    """

    x: UInt8[np.ndarray, "n 8 8 1"]
    label: Int32[np.ndarray, " n"]


class Dataset(NamedTuple):
    """The fixed split: 1437 images to train on and 360 held out."""

    train: Labelled
    test: Labelled


def _shares(counts: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in proportion to ``counts`` that sum to ``total`` (largest remainders)."""
    exact = counts * total / counts.sum()
    shares = np.floor(exact).astype(np.int64)
    largest = np.argsort(shares - exact, kind="stable")[: total - shares.sum()]
    shares[largest] += 1
    return shares


def digits() -> Dataset:
    """Return the handwritten digits that come with scikit-learn, split once and for all.

    The split is a seeded permutation within each class, so every class has the same share of the
    test images up to rounding. It depends on nothing but the data.

    Returns:
      A :class:`Dataset` of NumPy arrays on the host.

    Reference:
      E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
      Repository, 1998; the test part of it, as shipped by scikit-learn.
    """
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    images = np.asarray(pixels, np.uint8).reshape(-1, 8, 8, 1)
    labels = np.asarray(classes, np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    held_out = np.zeros(len(labels), bool)
    for label, share in enumerate(_shares(np.bincount(labels), TEST)):
        held_out[order[labels[order] == label][:share]] = True
    test, train = order[held_out[order]], order[~held_out[order]]
    return Dataset(Labelled(images[train], labels[train]), Labelled(images[test], labels[test]))
