"""Gradients of expectations: how each random choice of a program is differentiated.

A :class:`Strategy` says how one sample site is differentiated; :func:`annotate` gives the sites of
a NumPyro program theirs, and :func:`expectation` is a number whose derivative estimates the
expectation's. ``jax.grad`` does the rest.
"""

from jaxinf.grad.accept_reject import AcceptReject, accept_reject
from jaxinf.grad.annotate import Annotated, Draw, annotate, initial
from jaxinf.grad.enumeration import Enumeration, enumeration
from jaxinf.grad.expectation import averaged, expectation, reduced
from jaxinf.grad.forward_gradient import forward_gradient
from jaxinf.grad.implicit import Implicit, implicit
from jaxinf.grad.measure_valued import MeasureValued, measure_valued
from jaxinf.grad.one_hot import one_hot_categorical
from jaxinf.grad.reinmax import ReinMax, reinmax
from jaxinf.grad.reparameterised import Reparameterised, reparameterised
from jaxinf.grad.score_function import ScoreFunction, score_function
from jaxinf.grad.straight_through import StraightThrough, straight_through
from jaxinf.grad.strategy import Site, Strategy

__all__ = [
    "AcceptReject",
    "Annotated",
    "Draw",
    "Enumeration",
    "Implicit",
    "MeasureValued",
    "ReinMax",
    "Reparameterised",
    "ScoreFunction",
    "Site",
    "StraightThrough",
    "Strategy",
    "accept_reject",
    "annotate",
    "averaged",
    "enumeration",
    "expectation",
    "forward_gradient",
    "implicit",
    "initial",
    "measure_valued",
    "one_hot_categorical",
    "reduced",
    "reinmax",
    "reparameterised",
    "score_function",
    "straight_through",
]
