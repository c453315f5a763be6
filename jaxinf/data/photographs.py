"""Small colour patches of the two photographs that come with scikit-learn."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

LINE = 480
"""The column that parts what is trained on (left of it) from what is held out."""


class Photographs(NamedTuple):
    """Two photographs of 427x640 pixels, cut by a vertical line.

    Attributes:
      train: the part left of the line, ``[2, 427, 480, 3]``.
      test: the part right of it, ``[2, 427, 160, 3]``. No pixel is in both.
    """

    train: UInt8[np.ndarray, "2 427 480 3"]
    test: UInt8[np.ndarray, "2 427 160 3"]


def photographs() -> Photographs:
    """Return scikit-learn's two sample photographs, a temple and a flower.

    Returns:
      :class:`Photographs`, NumPy arrays on the host. Cut them with :func:`patches` (training) and
      :func:`tiles` (a fixed test set).
    """
    from sklearn.datasets import load_sample_images

    pixels = np.stack(load_sample_images().images)
    return Photographs(pixels[:, :, :LINE], pixels[:, :, LINE:])


def patches(
    images: UInt8[np.ndarray, "n h w c"],
    seed: int,
    step: int,
    index: Int[np.ndarray, " b"],
    *,
    size: int = 16,
) -> UInt8[np.ndarray, "b {size} {size} c"]:
    """Return random patches: any photograph, any offset, mirrored or not.

    A patch is a function of seed, step and its position alone, so any division of ``index`` over
    hosts gives the same global batch.

    Args:
      images: the photographs to cut, ``photographs().train`` say.
      seed: a whole number, not negative.
      step: the training step, from 0.
      index: positions within the global batch, not negative.
      size: height and width of a patch in pixels.

    Returns:
      Patches with the photographs' levels, on the host.

    Raises:
      ValueError: for a negative position, or a size that does not fit.
    """
    number, height, width, _ = images.shape
    _check_size(size, height, width)
    index = np.asarray(index, np.int64)
    if index.size and index.min() < 0:
        raise ValueError(f"index must hold positions from 0, got {index.min()}.")
    # A generator's doubles come in one order, so row i is the same however many rows are drawn.
    draws = np.random.default_rng([seed, step]).random((index.max(initial=-1) + 1, 4))[index]
    choices = np.array([number, height - size + 1, width - size + 1, 2])
    image, top, left, mirrored = (draws * choices).astype(np.int64).T
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))
    cut = windows[image, top, left].transpose(0, 2, 3, 1)
    return np.where(mirrored.astype(bool)[:, None, None, None], cut[:, :, ::-1], cut)


def tiles(
    images: UInt8[np.ndarray, "n h w c"], *, size: int = 16
) -> UInt8[np.ndarray, "m {size} {size} c"]:
    """Return the patches of a grid without overlap, row by row; what does not fill one is left out.

    Args:
      images: the photographs to cut; ``photographs().test`` gives 520 patches of 16x16.
      size: height and width of a patch in pixels.

    Returns:
      Patches with the photographs' levels, on the host.

    Raises:
      ValueError: for a size that does not fit.
    """
    number, height, width, channels = images.shape
    _check_size(size, height, width)
    down, across = height // size, width // size
    kept = images[:, : down * size, : across * size]
    parted = kept.reshape(number, down, size, across, size, channels)
    return parted.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size, size, channels)


def _check_size(size: int, height: int, width: int) -> None:
    """Raise unless a square of ``size`` pixels fits into the photographs."""
    if not 1 <= size <= min(height, width):
        raise ValueError(
            f"size must lie between 1 and {min(height, width)} for photographs of "
            f"{height}x{width} pixels, got {size}."
        )
