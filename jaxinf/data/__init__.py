"""Data that needs no download, and batches as a function of (seed, step, index).

Images come with scikit-learn and stay on the host as NumPy arrays of whole-numbered levels; what
a training step sees is chosen by pure functions of seed, step and position, so that a run can be
resumed at any step and shared by any number of hosts. :func:`dequantise` makes levels into real
numbers in [-1, 1] under ``jit``, :func:`quantise` turns them back. Data that do not fit into memory
are read by :func:`from_grain`.
"""

from jaxinf.data.digits import Dataset, Labelled, digits
from jaxinf.data.photographs import Photographs, patches, photographs, tiles
from jaxinf.data.quantise import dequantise, midpoints, quantise
from jaxinf.data.random_access import from_grain
from jaxinf.data.shuffle import rows

__all__ = [
    "Dataset",
    "Labelled",
    "Photographs",
    "dequantise",
    "digits",
    "from_grain",
    "midpoints",
    "patches",
    "photographs",
    "quantise",
    "rows",
    "tiles",
]
