"""Unnormalised densities as records with their data as leaves.

A :class:`Target` is what Markov chains, particle methods and variational objectives share: a log
density on unbounded numbers in two parts, and the values that a position stands for. It comes from
a NumPyro program (:func:`program`) or from a function (:func:`density`).
"""

from jaxinf.target.density import Density, density
from jaxinf.target.program import Program, program
from jaxinf.target.target import Target

__all__ = ["Density", "Program", "Target", "density", "program"]
