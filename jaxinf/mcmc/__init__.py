"""Markov chains for a target.

A transition kernel is a record with a step size and a metric; :func:`sample` runs chains of any of
them with warm-up inside, as one compiled program. :func:`nuts` is the one to start with.
:func:`to_arviz` hands the chains to ArviZ.
"""

from jaxinf.mcmc.adaptation import Metric, dense, diagonal
from jaxinf.mcmc.crank_nicolson import CrankNicolson, crank_nicolson
from jaxinf.mcmc.driver import Run, sample
from jaxinf.mcmc.hmc import HMC, hmc, mala
from jaxinf.mcmc.kernel import Info, Kernel, State, leapfrog
from jaxinf.mcmc.nuts import NUTS, nuts
from jaxinf.mcmc.random_walk import RandomWalk, random_walk
from jaxinf.mcmc.to_arviz import to_arviz

__all__ = [
    "HMC",
    "NUTS",
    "CrankNicolson",
    "Info",
    "Kernel",
    "Metric",
    "RandomWalk",
    "Run",
    "State",
    "crank_nicolson",
    "dense",
    "diagonal",
    "hmc",
    "leapfrog",
    "mala",
    "nuts",
    "random_walk",
    "sample",
    "to_arviz",
]
