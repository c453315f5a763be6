"""Unnormalised densities as records with their data as leaves.

A :class:`Target` is what Markov chains, particle methods and variational objectives share: a log
density on unbounded numbers in two parts, and the values that a position stands for. It comes from
a NumPyro program (:func:`program`) or from a function
(:func:`density`); :func:`mapped` gives it other coordinates.
"""

from jaxinf.target.density import Density, density
from jaxinf.target.mapped import Bijection, Mapped, mapped
from jaxinf.target.program import Program, program
from jaxinf.target.target import Target

__all__ = [
    "Bijection",
    "Density",
    "Mapped",
    "Program",
    "Target",
    "density",
    "mapped",
    "program",
]
