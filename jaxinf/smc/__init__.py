"""Populations of weighted particles, and the methods that move, weigh and resample them.

A :class:`Population` is the noun; :func:`run` is the driver of every particle method over a
Feynman-Kac model. :func:`particle_filter` filters a :func:`jaxinf.markov.state_space`;
:func:`temper` draws from a :class:`jaxinf.target.Target`. Both estimate the evidence, with a
standard error from the same run.
"""

from jaxinf.smc.conditional import conditional
from jaxinf.smc.driver import History, Info, Model, Run, Weighted, advance, run
from jaxinf.smc.filter import particle_filter
from jaxinf.smc.levels import Schedule, Tempering
from jaxinf.smc.nested import Nested, nested
from jaxinf.smc.population import Population, population
from jaxinf.smc.proposal import (
    Ahead,
    Proposal,
    auxiliary,
    bootstrap,
    guided,
    optimal,
    predictive,
)
from jaxinf.smc.resampling import (
    Metropolis,
    Scheme,
    metropolis,
    multinomial,
    residual,
    stratified,
    systematic,
)
from jaxinf.smc.temper import anneal, schedule, temper
from jaxinf.smc.temperature import Tempered, next_temperature
from jaxinf.smc.transport import Transport, Triangular, fit_transport, triangular

__all__ = [
    "Ahead",
    "History",
    "Info",
    "Metropolis",
    "Model",
    "Nested",
    "Population",
    "Proposal",
    "Run",
    "Schedule",
    "Scheme",
    "Tempered",
    "Tempering",
    "Transport",
    "Triangular",
    "Weighted",
    "advance",
    "anneal",
    "auxiliary",
    "bootstrap",
    "conditional",
    "fit_transport",
    "guided",
    "metropolis",
    "multinomial",
    "nested",
    "next_temperature",
    "optimal",
    "particle_filter",
    "population",
    "predictive",
    "residual",
    "run",
    "schedule",
    "stratified",
    "systematic",
    "temper",
    "triangular",
]
