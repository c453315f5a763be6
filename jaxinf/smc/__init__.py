"""Populations of weighted particles, and the methods that move, weigh and resample them.

A :class:`Population` is the noun; :func:`run` is the driver of every particle method over a
Feynman-Kac model, and :func:`temper` draws from a :class:`jaxinf.target.Target` and estimates its
evidence, with a standard error from the same run.
"""

from jaxinf.smc.driver import History, Info, Model, Run, advance, run
from jaxinf.smc.levels import Schedule, Tempering
from jaxinf.smc.population import Population, population
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

__all__ = [
    "History",
    "Info",
    "Metropolis",
    "Model",
    "Population",
    "Run",
    "Schedule",
    "Scheme",
    "Tempered",
    "Tempering",
    "advance",
    "anneal",
    "metropolis",
    "multinomial",
    "next_temperature",
    "population",
    "residual",
    "run",
    "schedule",
    "stratified",
    "systematic",
    "temper",
]
